"""Bind limits to the keys of the counters that a request is charged to."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any, Final

from enforcement.model.algorithms import NEVER, Spec
from enforcement.model.calendars import boundaries_around, number_of, start_after
from enforcement.model.keys import Keys, counter_name, tag_of_key
from enforcement.model.limits import Limit
from enforcement.model.matching import NO_LABELS
from enforcement.model.metered import FrozenMapping, cost_name
from enforcement.model.partitions import PartitionIndex, carried_us, most_windows_carried
from enforcement.model.sizes import MAX_CODE_KEY_LENGTH, MAX_LIMITS_PER_REQUEST
from enforcement.plan.costs import Costs, names

LETTERS: Final = {
    "fixed_window": "f",
    "sliding_window": "s",
    "sliding_log": "l",
    "token_bucket": "b",
    "concurrency": "c",
}


_NOT_RECORDED: Final = frozenset(("partition_by", "match", "on_store_failure"))
"""Fields of a limit that a settlement does not need."""


_ALWAYS: Final = -(2**63), 2**63
"""The window of a limit that has no calendar, in microseconds since the epoch."""


def _length(key: object) -> str:
    """Return the length of a string as text, or the name of another value's type, because a key may be secret."""
    return str(len(key)) if isinstance(key, str) else type(key).__name__


@dataclass(frozen=True, slots=True)
class BoundLimit:
    """
    A limit bound to one counter.

    Attributes:
        limit: The limit, with its override applied.
        key: The counter's key in the store.
        scope: What the policy is attached to (``global``, ``project``, ``anonymous`` or ``token``). ``key`` for a limit
            in code.
        policy_id: Empty for a limit in code, as is *policy_slug*.
        override_id: None if no override applies.
        index: Its index among all limits of the token, including those that do not match this request.
        partitions: Where the store registers the values that have a counter of their own. None if the limit is not
            partitioned, or if this is the overflow counter.
        value: The name of this counter's value in *partitions*. Empty if that is None.
        overflow: Whether this is the overflow counter, which all values beyond the project's cap share.
        earlier: The key that 0.2 gave to the counter, if it is durable and of a partition. Else empty.
        labels: The labels of the token that the limit looks at, named as attributes.
        common: The limit, and the id of its override, for values without an override of their own. They share the
            overflow counter. None: as this one.
        cost_name: The name under which a meter gives the cost of the limit.
    """

    limit: Limit
    key: str
    scope: str
    policy_id: str = ""
    policy_slug: str = ""
    override_id: str | None = None
    index: int = 0
    partitions: PartitionIndex | None = None
    value: str = ""
    overflow: bool = False
    earlier: str = ""
    labels: FrozenMapping[str] = NO_LABELS
    common: tuple[Limit, str | None] | None = None
    cost_name: str = field(init=False, repr=False, compare=False)
    _spec: tuple[Spec, int, int] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost_name", cost_name(self.limit))

    @property
    def tag(self) -> str:
        """The hash tag of the counter's key. One call can reach all counters with the same hash tag."""
        return self.key[self.key.index("{") + 1 : self.key.index("}")]

    @property
    def letter(self) -> str:
        """The letter of the algorithm in calls to the store."""
        return LETTERS[self.limit.algorithm]

    @property
    def durable(self) -> bool:
        """Whether the counter is checkpointed. Limits in code are not, since the control plane does not know them."""
        return self.limit.durable and self.scope != "key"

    def cost_of(self, costs: Costs) -> int:
        """
        Return how many permits of this limit a request costs.

        Args:
            costs: A number of requests, or permits by unit.
        Returns:
            Permits. 0 if *costs* does not contain the unit of the limit, but 1 if it is a mapping without
                ``requests``, and that is the unit.
        """
        if isinstance(costs, int):
            return costs if self.limit.unit == "requests" else 0
        cost = costs.get(self.cost_name)
        if cost is not None:
            return cost
        unit = self.limit.unit
        return costs.get(unit, 1 if unit == "requests" else 0)

    def settled_cost(self, costs: Mapping[str, int], estimate: int) -> int:
        """Return how many permits of this limit the real costs are. What they do not name keeps its *estimate*."""
        cost = costs.get(self.cost_name)
        return costs.get(self.limit.unit, estimate) if cost is None else cost

    def names_cost(self, costs: Container[str]) -> bool:
        """Return whether *costs* give a cost for this limit, by its own name or by its unit."""
        return self.cost_name in costs or names(self.limit.unit, costs)

    def spec(self, now_us: int) -> Spec:
        """
        Return a :class:`Spec`, by which the store decides on this limit, with the calendar window around *now_us*.
        """
        cached = self._spec
        if cached is None or not cached[1] <= now_us < cached[2]:
            spec = self._spec_at(now_us)
            window = spec.windows[1:3] or _ALWAYS
            cached = spec, window[0], window[1]
            object.__setattr__(self, "_spec", cached)
        return cached[0]

    def _spec_at(self, now_us: int) -> Spec:
        limit = self.limit
        letter, length = LETTERS[limit.algorithm], (limit.window_seconds or 0) * 1_000_000
        if letter == "b":
            divisor = gcd(limit.quota, length)
            return Spec(letter, limit.capacity, limit.quota // divisor, (length // divisor,), limit.shadow)
        if letter == "l" and limit.leasable:
            # A leased permit may be used this much later than it was charged.
            length += limit.held_us
        if limit.calendar is None or limit.calendar == "lifetime":
            return Spec(letter, limit.capacity, length, (), limit.shadow, self.durable)
        place = limit.calendar, limit.time_zone, limit.anchor
        windows = boundaries_around(now_us, *place)
        if limit.rollover:
            letter, length, windows = "r", limit.quota, (*windows, number_of(windows[1], *place), carried_us(limit))
        return Spec(letter, limit.capacity, length, windows, limit.shadow, self.durable)

    def window_end(self, now_us: int) -> int:
        """
        Return when the present window of a fixed-window limit ends, in microseconds since the epoch, or 0 for never.
        """
        spec = self.spec(now_us)
        if spec.b:
            return spec.b[2]
        return now_us - now_us % spec.a + spec.a if spec.a else 0

    def rolled_wait(self, cost: int, remaining: int, now_us: int) -> int:
        """
        Return how long a cost above what remains waits for windows to carry enough, in microseconds.

        Args:
            cost: Permits, at most the capacity of this limit, which has a rollover.
            remaining: Permits left now. Below 0 after a debt.
        Returns:
            Microseconds until the end of a window. :data:`~enforcement.model.algorithms.NEVER` if the counter is
                forgotten before.
        """
        limit, end_us = self.limit, self.window_end(now_us)
        idle = max(0, -(-(cost - limit.quota - max(0, remaining)) // limit.quota))
        if not idle:
            return end_us - now_us
        if idle > most_windows_carried(limit):
            return NEVER
        fits_us = start_after(end_us, idle, limit.calendar or "", limit.time_zone, limit.anchor)
        return fits_us - now_us if fits_us - end_us < carried_us(limit) else NEVER

    def origin(self) -> dict[str, object]:
        """Return the dictionary of this limit in :meth:`~enforcement.plan.decision.Decision.explain`."""
        labels = {"labels": dict(self.labels)} if self.labels else {}
        return {
            "limit": self.limit.name,
            "policy": self.policy_slug,
            "policy_id": self.policy_id,
            "scope": self.scope,
            "override": self.override_id,
            "quota": self.limit.quota,
            "counter": self.key,
            "overflow": self.overflow,
            **labels,
        }

    def recorded(self) -> dict[str, object]:
        """Return what the record of a reservation has of this limit, as JSON values."""
        row = {"key": self.key, "scope": self.scope, "policy_id": self.policy_id, "policy": self.policy_slug}
        if self.partitions is not None:
            row["overflow"] = self.partitions.overflow
        limit = self.limit.to_json().items()
        return {**row, "limit": {name: value for name, value in limit if name not in _NOT_RECORDED}}

    def overflowing(self) -> BoundLimit:
        """Return a copy of this bound limit, bound to its overflow counter."""
        assert self.partitions is not None
        limit, override_id = self.common or (self.limit, self.override_id)
        own = replace(self, limit=limit, override_id=override_id, common=None)
        return replace(own, key=self.partitions.overflow, partitions=None, value="", overflow=True, earlier="")


KeyedLimits = Sequence[tuple[Limit | Sequence[Limit], str]]
"""Limits in code with different keys, such as ``[(per_ip, ip), (overall, "all")]``."""

Limits = Limit | Sequence[Limit] | KeyedLimits
"""Limits in code: one, several with one key, or pairs."""

Pairs = tuple[tuple[tuple[Limit, ...], str], ...]
"""Limits in code, each group with its key."""


def pairs_of(limits: Limits, key: str | None) -> Pairs:
    """
    Return limits in code as pairs of a tuple of limits and their key.

    Args:
        limits: See :data:`Limits`.
        key: The key of all limits. None if *limits* are pairs.
    Raises:
        ValueError: *key* is None, and *limits* are not pairs.
        TypeError: See :func:`several_of`.
    """
    several: Any = several_of(limits)
    if key is not None:
        return ((several, key),)
    if not several or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in several):
        rule = f"must be a string of 1 to {MAX_CODE_KEY_LENGTH} characters"
        raise ValueError(f"key: {rule}, unless limits are pairs of a limit and its key, got NoneType.")
    return tuple((several_of(some), own) for some, own in several)


def several_of(limits: object) -> tuple[Any, ...]:
    """
    Return one limit, or the limits in any iterable, which is read once, as a tuple.

    Raises:
        TypeError: It is neither. What the tuple has in it is checked by :func:`bind_pairs`.
    """
    if isinstance(limits, (Limit, str)):
        return (limits,)
    if not isinstance(limits, (list, tuple, Iterable)):  # the first two are quicker to tell
        raise TypeError(f"limits: must be Limit values, got {limits!r}.")
    return tuple(limits)


def bind_in_code(limits: Sequence[Limit], key: str, keys: Keys) -> tuple[BoundLimit, ...]:
    """
    Return a new :class:`BoundLimit` for each limit in code, bound to its counter for one key. Raises the errors of
    :func:`bind_pairs`.
    """
    return bind_pairs(((tuple(limits), key),), keys)


def bind_pairs(pairs: Pairs, keys: Keys) -> tuple[BoundLimit, ...]:
    """
    Return a new :class:`BoundLimit` for each limit in code, bound to its counter for the key of its pair.

    Raises:
        ValueError: There are no limits or more than 64, two have the same name, one needs attributes, or a key is not a
            string of valid length.
        TypeError: One of them is not a Limit.
    """
    limits: list[Any] = [limit for several, _ in pairs for limit in several]
    for limit in limits:
        if not isinstance(limit, Limit):
            hint = "Pairs have their own keys" if isinstance(limit, tuple) else "Limit.parse() makes one from a string"
            raise TypeError(f"limits: must be Limit values, got {limit!r}. {hint}.")
    for _, key in pairs:
        if not isinstance(key, str) or not 0 < len(key) <= MAX_CODE_KEY_LENGTH:
            raise ValueError(f"key: must be a string of 1 to {MAX_CODE_KEY_LENGTH} characters, got {_length(key)}.")
    if not all(several for several, _ in pairs) or len(limits) > MAX_LIMITS_PER_REQUEST:
        raise ValueError(f"limits: must be 1 to {MAX_LIMITS_PER_REQUEST}, got {len(limits)}.")
    if len({limit.name for limit in limits}) < len(limits):
        raise ValueError(f"limits: names must be unique, got {', '.join(limit.name for limit in limits)}.")
    for limit in limits:
        if limit.partition_by or limit.match.to_json():
            raise ValueError(f"limits: must not need attributes, which only check() takes, got {limit.name!r}.")
    counters = [
        keys.scope(tag_of_key(key)) + counter_name(limit, ("key", key, "", limit.name))
        for several, key in pairs
        for limit in several
    ]
    rows = enumerate(zip(limits, counters, strict=True))
    return tuple(BoundLimit(limit, counter, "key", index=i) for i, (limit, counter) in rows)
