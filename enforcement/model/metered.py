"""
Define how limits and policies treat requests that a meter reads.

A meter counts the tokens of a request by class, and what they cost. The rules here say which of these tokens a limit
counts, and what happens if a price or the meter itself is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Protocol, Self, TypeVar

from enforcement.model.checks import integer_rule, is_integer, shown
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.sizes import MAX_PATTERN_LENGTH

MONEY: Final = "micros"
"""The unit of money, which is millionths of the currency."""
INPUT_CLASSES: Final = ("input", "cached_input", "cache_write")
TOKEN_UNITS: Final = {
    "input_tokens": INPUT_CLASSES,
    "output_tokens": ("output",),
    "tokens": (*INPUT_CLASSES, "output"),
}
"""The units of tokens, each with the usage classes that it counts."""
METERED_UNITS: Final = frozenset({MONEY, *TOKEN_UNITS})

BODY_ATTRIBUTES: Final = frozenset({"model", "stream", "session", "tool"})
"""The attributes of a request that a meter reads from its body."""

FULL_WEIGHT: Final = 1_000
"""The weight of a class that counts as it is. Weights are per mille."""
MAX_WEIGHT: Final = 1_000_000
DENY: Final = "deny"
COUNT_ONLY: Final = "count_only"
UNMETERED: Final = (DENY, COUNT_ONLY)
CHARGE_AS: Final = "charge_as"

TYPICAL, BOUND = ESTIMATES = ("typical", "bound")
FREE, DRAIN = DISCONNECTS = ("free", "drain")
USUAL_DISCONNECT: Final = {TYPICAL: FREE, BOUND: DRAIN}
"""The rule for an answer whose client has left, by the estimate, if a policy has no rule of its own."""
USUAL_LOST_AFTER: Final = 3_600
MAX_LOST_AFTER: Final = 7 * DAY_SECONDS
"""Seconds after which nobody can settle a reservation any more."""
PARTS: Final = ("image", "audio", "video", "file", "other")
"""The kinds of parts of a request that are not text."""
MAX_OUTPUT_CAP: Final = 2**31 - 1
"""The greatest number of output tokens that a request may allow."""
USUAL_OUTPUT_CAP: Final = 4_096
"""Output tokens of a request that names no cap, if neither its policy nor the price of its model does."""
MAX_PART_TOKENS: Final = 1_000_000_000

V = TypeVar("V")


class InvalidMetering(ValueError):
    """
    A rule for metered requests that cannot be followed.

    Attributes:
        field: Name of the field that is wrong, as in JSON.
        reason: The rule that it breaks, as a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class FrozenMapping(Mapping[str, V]):
    """A small mapping that does not change, and that can be hashed and pickled."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | tuple[()] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> V:
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, V]]]:
        return type(self), (self._items,)


@dataclass(frozen=True, slots=True)
class Metering:
    """
    How requests under a policy are estimated, and what happens when their client leaves.

    Args:
        estimate: ``typical`` estimates the input from the length of the text. ``bound`` takes the most that it can be,
            and refuses what has no bound.
        default_cap: Output tokens of a request that names no cap, 1 to 2**31 - 1. They are written into the request.
            None: that of the price of its model, else :data:`USUAL_OUTPUT_CAP`.
        part_tokens: Tokens of one part that is not text, by its kind, see :data:`PARTS`.
        on_disconnect: ``free`` cancels the call to the provider when the client leaves. ``drain`` reads its answer to
            the end, within bounds, for its usage. Empty: ``drain`` with a bound, else ``free``.
        clamp_at_least: Lower the cap of a request to what its limits have left, but not below this number. None: deny
            the request.
        lost_after: Seconds after which a metered reservation that its process has lost is settled as its estimate, 0 to
            604,800. 0: as soon as it is found. 604,800: never before its record is gone, so only by hand. Enforcers do
            not use it.
    Raises:
        InvalidMetering: A field breaks a rule.
    """

    estimate: str = TYPICAL
    default_cap: int | None = None
    part_tokens: Mapping[str, int] = field(default_factory=FrozenMapping)
    on_disconnect: str = ""
    clamp_at_least: int | None = None
    lost_after: int = USUAL_LOST_AFTER

    def __post_init__(self) -> None:
        _one_of("estimate", self.estimate, ESTIMATES)
        if self.on_disconnect == "":
            object.__setattr__(self, "on_disconnect", USUAL_DISCONNECT[self.estimate])
        _one_of("on_disconnect", self.on_disconnect, DISCONNECTS)
        if not is_integer(self.lost_after, 0, MAX_LOST_AFTER):
            raise InvalidMetering("lost_after", _sentence(integer_rule(self.lost_after, 0, MAX_LOST_AFTER)))
        for name in ("default_cap", "clamp_at_least"):
            value = getattr(self, name)
            if value is not None and not is_integer(value, 1, MAX_OUTPUT_CAP):
                raise InvalidMetering(name, _sentence(integer_rule(value, 1, MAX_OUTPUT_CAP)))
        parts = _integers("part_tokens", self.part_tokens, PARTS, MAX_PART_TOKENS)
        object.__setattr__(self, "part_tokens", parts)

    def to_json(self) -> dict[str, object]:
        """
        Return the rules as JSON values for :meth:`from_json`, without the fields that have their default.

        With a bound, ``on_disconnect`` is always there: releases that have another default for it read the same rules.
        """
        data = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        data["part_tokens"] = dict(self.part_tokens)
        always = {"estimate", "on_disconnect"} if self.estimate == BOUND else ()
        return {n: value for n, value in data.items() if n in always or value != getattr(DEFAULT_METERING, n)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """
        Return the rules that JSON values describe.

        Raises:
            InvalidMetering: A field is unknown or breaks a rule.
        """
        if not isinstance(data, Mapping):
            raise InvalidMetering("metering", "Must be an object.")
        unknown = sorted(map(str, set(data) - {spec.name for spec in fields(cls)}))
        if unknown:
            raise InvalidMetering(unknown[0], "Unknown field.")
        if "on_disconnect" in data:
            _one_of("on_disconnect", data["on_disconnect"], DISCONNECTS)
        return cls(**data)


class LimitRules(Protocol):
    """The fields of a limit that decide what a metered request costs it."""

    @property
    def unit(self) -> str: ...
    @property
    def weights(self) -> Mapping[str, int]: ...
    @property
    def unpriced(self) -> str | Mapping[str, str]: ...
    @property
    def charge_on(self) -> tuple[str, ...]: ...


def cost_name(limit: LimitRules) -> str:
    """
    Return the name under which a meter gives the cost of a limit.

    Limits of one unit may cost the same request differently, by their weights, by the model that an unpriced one is
    charged as, or by the responses that they are charged for. Limits with the same name always cost the same.

    Returns:
        The unit, or for a limit with such rules the unit and a digest of the rules.
    """
    if not limit.weights and not limit.charge_on and isinstance(limit.unpriced, str):
        return limit.unit
    unpriced = "" if isinstance(limit.unpriced, str) else dict(limit.unpriced)
    # Most processes name no cost of a metered request.
    from hashlib import blake2s

    from enforcement.model.strict_json import dumps

    rules = dumps([dict(limit.weights), unpriced, sorted(limit.charge_on)])
    return f"{limit.unit}:{blake2s(rules.encode(), digest_size=8).hexdigest()}"


def check_limit(
    unit: str, weights: object, unpriced: object, unmetered: object
) -> tuple[FrozenMapping[int], str | FrozenMapping[str]]:
    """
    Return the weights and the rule for unpriced models of a limit as values that do not change.

    Args:
        unit: The unit of the limit.
        weights: Usage class to weight, per mille. Only units of tokens have weights, of the classes that they count.
        unpriced: ``deny``, ``count_only``, or a mapping ``{"charge_as": model}``. Only money is priced.
        unmetered: ``deny`` or ``count_only``. Only tokens and money need a meter.
    Raises:
        InvalidMetering: One of the three breaks a rule, or does not apply to the unit.
    """
    if weights and unit not in TOKEN_UNITS:
        raise InvalidMetering("weights", f"Only a limit of {', '.join(TOKEN_UNITS)} has weights.")
    _one_of("unmetered", unmetered, UNMETERED)
    if unmetered != DENY and unit not in METERED_UNITS:
        raise InvalidMetering("unmetered", f"Only a limit of {', '.join([*TOKEN_UNITS, MONEY])} needs a meter.")
    return _integers("weights", weights, TOKEN_UNITS.get(unit, ()), MAX_WEIGHT), _unpriced(unit, unpriced)


def _unpriced(unit: str, rule: object) -> str | FrozenMapping[str]:
    if isinstance(rule, Mapping) and set(rule) == {CHARGE_AS}:
        model = rule[CHARGE_AS]
        if not isinstance(model, str) or not 0 < len(model) <= MAX_PATTERN_LENGTH:
            reason = f"The model to charge as must be a string of 1 to {MAX_PATTERN_LENGTH} characters"
            raise InvalidMetering("unpriced", f"{reason}, got {shown(model)}.")
    elif not isinstance(rule, str) or rule not in UNMETERED:
        raise InvalidMetering("unpriced", f'Must be deny, count_only or {{"charge_as": model}}, got {shown(rule)}.')
    if rule != DENY and unit != MONEY:
        raise InvalidMetering("unpriced", f"Only a limit of {MONEY} asks for a price.")
    return FrozenMapping(rule) if isinstance(rule, Mapping) else rule


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InvalidMetering(name, f"Must be one of {', '.join(choices)}, got {shown(value)}.")


def _integers(name: str, values: object, names: tuple[str, ...], most: int) -> FrozenMapping[int]:
    if not isinstance(values, Mapping):
        raise InvalidMetering(name, f"Must be an object of integers, got {shown(values)}.")
    for key, value in values.items():
        if key not in names:
            raise InvalidMetering(name, f"Must name only {', '.join(names)}, got {shown(key)}.")
        if not is_integer(value, 0, most):
            raise InvalidMetering(name, f"{key} {integer_rule(value, 0, most)}.")
    return FrozenMapping(values)


def _sentence(rule: str) -> str:
    return f"{rule[0].upper()}{rule[1:]}."


DEFAULT_METERING: Final = Metering()
"""The rules of a policy that has none of its own."""
