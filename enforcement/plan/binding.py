"""Bind limits to the keys of the counters that a request is charged to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, Final

from enforcement.model.algorithms import Spec
from enforcement.model.calendars import boundaries, window
from enforcement.model.documents import Override, Project, Token
from enforcement.model.keys import GLOBAL_TAG, Keys, fingerprint
from enforcement.model.limits import MAX_NUMBER, Limit, Policy
from enforcement.model.matching import Attributes
from enforcement.model.partitions import PartitionIndex, life_us
from enforcement.model.sizes import MAX_CODE_KEY_LENGTH, MAX_LIMITS_PER_REQUEST

LETTERS: Final = {
    "fixed_window": "f",
    "sliding_window": "s",
    "sliding_log": "l",
    "token_bucket": "b",
    "concurrency": "c",
}

Costs = int | Mapping[str, int]


def check_costs(costs: Costs) -> Costs:
    """
    Return valid costs as they are.

    Raises:
        ValueError: A cost is not an integer from 0 to 2**53 - 1, or a unit is not a string.
    """
    if isinstance(costs, Mapping):
        for unit, cost in costs.items():
            if not isinstance(unit, str):
                raise ValueError(f"costs: each unit must be a string, got {unit!r}.")
            _check_cost(f"costs[{unit!r}]", cost)
    else:
        _check_cost("costs", costs)
    return costs


def _check_cost(name: str, cost: object) -> None:
    if type(cost) is not int or not 0 <= cost <= MAX_NUMBER:
        raise ValueError(f"{name}: must be an integer from 0 to {MAX_NUMBER}, got {cost!r}.")


@dataclass(frozen=True, slots=True)
class BoundLimit:
    """
    A limit bound to one counter.

    Attributes:
        limit: With its override applied.
        key: The counter's key in the store.
        scope: What the policy is attached to: ``global``, ``project``, ``token``; ``key`` for a limit in code.
        index: Its index among all limits of the token, including those that do not match this request.
        census: Where the values of its partition are registered; None if it has no partition.
        value: The name of its own value there.
        overflow: Whether its counter is the one that all values beyond the cap share.
    """

    limit: Limit
    key: str
    scope: str
    policy_id: str = ""
    policy_slug: str = ""
    override_id: str | None = None
    index: int = 0
    census: PartitionIndex | None = None
    value: str = ""
    overflow: bool = False

    @property
    def tag(self) -> str:
        """The hash tag of its key. One call can reach all counters with the same hash tag."""
        return self.key[self.key.index("{") + 1 : self.key.index("}")]

    @property
    def letter(self) -> str:
        """The letter by which the store's functions know the algorithm."""
        return LETTERS[self.limit.algorithm]

    @property
    def durable(self) -> bool:
        """Whether its counter is checkpointed. Limits in code are not, since the control plane does not know them."""
        return self.limit.durable and self.scope != "key"

    def cost_of(self, costs: Costs) -> int:
        """
        Return the permits that a request of these costs takes from this limit.

        A mapping without its unit costs 0, or 1 if the unit is ``requests``.
        """
        unit = self.limit.unit
        if isinstance(costs, int):
            return costs if unit == "requests" else 0
        return costs.get(unit, 1 if unit == "requests" else 0)

    def spec(self, now_us: int) -> Spec:
        """Return the numbers that the store's functions need, with the calendar window around *now_us*."""
        limit = self.limit
        letter, length = LETTERS[limit.algorithm], (limit.window_seconds or 0) * 1_000_000
        if letter == "b":
            divisor = gcd(limit.quota, length)
            return Spec(letter, limit.capacity, limit.quota // divisor, (length // divisor,), limit.shadow)
        if letter == "l" and limit.leasable:
            length += limit.held_us  # a permit may be handed out this much later than it was charged
        if limit.calendar is None or limit.calendar == "lifetime":
            return Spec(letter, limit.capacity, length, (), limit.shadow, self.durable)
        present = window(now_us, limit.calendar, limit.time_zone, limit.anchor)
        around = boundaries(present, limit.calendar, limit.time_zone, limit.anchor)
        return Spec(letter, limit.capacity, 0, around, limit.shadow, self.durable)

    def window_end(self, now_us: int) -> int:
        """Return when the present window of a fixed window ends, in microseconds since the epoch. 0 means never."""
        spec = self.spec(now_us)
        if spec.b:
            return spec.b[2]
        return now_us - now_us % spec.a + spec.a if spec.a else 0

    def origin(self) -> dict[str, Any]:
        """Return the policy, override and counter of the limit, for explanations."""
        return {
            "limit": self.limit.name,
            "policy": self.policy_slug,
            "policy_id": self.policy_id,
            "scope": self.scope,
            "override": self.override_id,
            "quota": self.limit.quota,
            "counter": self.key,
            "overflow": self.overflow,
        }

    def overflowing(self) -> BoundLimit:
        """Return the same limit, bound to the counter that all values beyond the cap share."""
        assert self.census is not None
        return replace(self, key=self.census.overflow, census=None, value="", overflow=True)


def bind_in_code(limits: Sequence[Limit], key: str, keys: Keys) -> tuple[BoundLimit, ...]:
    """
    Bind limits in code to the counters of one key.

    Raises:
        ValueError: There is no limit, or two have the same name, or one needs attributes, or the key is not a string of
            valid length.
        TypeError: One of them is not a Limit.
    """
    for limit in limits:
        if not isinstance(limit, Limit):
            raise TypeError(f"limits: must be Limit values, got {limit!r}. Limit.parse() makes one from a string.")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_CODE_KEY_LENGTH:
        raise ValueError(f"key: must be a string of 1 to {MAX_CODE_KEY_LENGTH} characters.")
    if not 0 < len(limits) <= MAX_LIMITS_PER_REQUEST:
        raise ValueError(f"limits: must be 1 to {MAX_LIMITS_PER_REQUEST}, got {len(limits)}.")
    if len({limit.name for limit in limits}) < len(limits):
        raise ValueError("limits: names must be unique.")
    for limit in limits:
        if limit.partition_by or limit.match.to_json():
            raise ValueError(f"limits: {limit.name!r} needs attributes, which only check() has.")
    scope = keys.scope(fingerprint(("key", key)))
    return tuple(BoundLimit(limit, scope + _counter(limit, ()), "key", index=i) for i, limit in enumerate(limits))


@dataclass(frozen=True, slots=True)
class Subject:
    """The documents that apply to one token at one revision."""

    project: Project
    token: Token | None
    policies: Mapping[str, Policy]
    global_policy: str | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit that may apply to a token, before the attributes of a request are known."""

    limit: Limit
    scope: str
    tag: str
    identity: tuple[str, ...]
    policy: Policy
    override_id: str | None
    ends_at_us: int | None
    index: int
    project: Project

    def bind(self, keys: Keys, attributes: Attributes, census: PartitionIndex | None = None) -> BoundLimit:
        """
        Return the limit bound to the counter of these attributes.

        Args:
            census: The result of :meth:`census`.
        """
        limit, identity, value = self.limit, self.identity, ""
        if limit.partition_by:
            # With their names, for a limit may come to be partitioned by another attribute that has the same values.
            identity = (*identity, *(text for name in limit.partition_by for text in (name, attributes[name])))
            value = fingerprint(identity) if census else ""
        key = keys.scope(self.tag) + _counter(limit, identity)
        origin = (self.scope, self.policy.id, self.policy.slug, self.override_id, self.index)
        return BoundLimit(limit, key, *origin, census, value)

    def overflow(self, census: PartitionIndex) -> BoundLimit:
        """Return the limit, bound to the counter that all values beyond the cap share."""
        origin = (self.scope, self.policy.id, self.policy.slug, self.override_id, self.index)
        return BoundLimit(self.limit, census.overflow, *origin, overflow=True)

    def census(self, keys: Keys) -> PartitionIndex | None:
        """
        Return where the values of this limit's partition are registered.

        Each project has a partition index of its own, even for a global limit. So a flood of values in one project
        leaves room for the values of the others.

        Returns:
            None if the limit has no partition.
        """
        if not self.limit.partition_by:
            return None
        key, overflowed = keys.census(self.tag, ("census", self.project.id, self.policy.id, self.limit.name))
        shared = _counter(self.limit, ("overflow", self.project.id, *self.identity))
        return PartitionIndex(
            key, overflowed, keys.scope(self.tag) + shared, self.project.partition_cap, life_us(self.limit)
        )


def rules_of(subject: Subject, now_us: int) -> tuple[Rule, ...]:
    """
    Return all limits that may apply to a token, from the global policy, the project's policy and its own.

    A policy that a document names and that is not published adds nothing. The reader of documents reports it.
    Overrides that have ended at *now_us* do not count.
    """
    project, token = subject.project, subject.token
    attached: list[tuple[str, str, tuple[str, ...], str | None]] = [
        ("global", GLOBAL_TAG, ("global",), subject.global_policy)
    ]
    attached.append(("project", project.id, ("project", project.id), project.policy))
    if token is not None:
        attached.append(("token", project.id, ("token", token.id), token.policy))
    overrides = [*(token.overrides if token else ()), *project.overrides]
    rules: list[Rule] = []
    for scope, tag, identity, policy_id in attached:
        policy = subject.policies.get(policy_id or "")
        for limit in policy.limits if policy else ():
            assert policy is not None
            override = _override_for(overrides, policy, limit, now_us)
            if override is not None:
                limit = override.apply(limit)
            rules.append(
                Rule(
                    limit,
                    scope,
                    tag,
                    (*identity, policy.id, limit.name),
                    policy,
                    override.id if override else None,
                    override.ends_at_us if override else None,
                    len(rules),
                    project,
                )
            )
    return tuple(rules)


def _override_for(overrides: Sequence[Override], policy: Policy, limit: Limit, now_us: int) -> Override | None:
    """Return the override that applies, or None. Those of the token come before those of its project."""
    for override in overrides:
        if (override.policy, override.limit) != (policy.id, limit.name):
            continue
        if override.ends_at_us is None or now_us < override.ends_at_us:
            return override
    return None


def _counter(limit: Limit, identity: tuple[str, ...]) -> str:
    """
    Return the last part of a counter's key.

    It begins with the letter of the algorithm, so a changed algorithm starts a new counter. The keys of windows contain
    the length of the window, for the same reason. Logs and buckets keep their counter if the length changes.
    """
    letter = LETTERS[limit.algorithm]
    shape = ""
    if letter == "f":
        calendar = f"{limit.calendar}|{limit.time_zone}|{limit.anchor}"
        shape = f"{limit.window_seconds}" if limit.calendar is None else calendar
    elif letter == "s":
        shape = f"{limit.window_seconds}"
    return letter + fingerprint((*identity, limit.name, shape))


__all__ = [
    "LETTERS",
    "MAX_LIMITS_PER_REQUEST",
    "BoundLimit",
    "Costs",
    "Rule",
    "Subject",
    "bind_in_code",
    "check_costs",
    "rules_of",
]
