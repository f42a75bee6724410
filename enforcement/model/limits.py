"""
Define limits as frozen values that check themselves when they are built.

The rules of a valid limit are written only here. The control plane's models, forms and API and every enforcer build
these values, so none of them accepts a limit that another refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, InitVar, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypedDict, Unpack

from enforcement.model.calendars import CALENDARS, Anchor, check_rollover, is_host_zone, is_zone, read_anchor
from enforcement.model.checks import integer_rule, is_integer, shown
from enforcement.model.instants import DAY_SECONDS, SECOND_US
from enforcement.model.matching import (
    ATTRIBUTE_NAME_RULE,
    InvalidMatch,
    Match,
    is_attribute_name,
    may_exist,
    no_label,
)
from enforcement.model.metered import DENY, MONEY, FrozenMapping, InvalidMetering, check_limit
from enforcement.model.rates import parse_rate, rate_name, split_rates
from enforcement.model.sizes import (
    MAX_NAME_LENGTH,
    MAX_NUMBER,
    MAX_PARTITIONS,
    MAX_SLOTS_PER_REQUEST,
    MAX_UNIT_LENGTH,
)

Algorithm = Literal["fixed_window", "sliding_window", "sliding_log", "token_bucket", "concurrency"]
Calendar = Literal["minute", "hour", "day", "week", "month", "year", "lifetime"]
Mode = Literal["enforce", "shadow"]
Consistency = Literal["strict", "leased"]
StoreFailure = Literal["local", "allow", "deny"]
ALGORITHMS: Final = ("fixed_window", "sliding_window", "sliding_log", "token_bucket", "concurrency")
MODES: Final = ("enforce", "shadow")
CONSISTENCIES: Final = ("strict", "leased")
STORE_FAILURES: Final = ("local", "allow", "deny")

MAX_HELD_US: Final = SECOND_US
"""A leased permit is used within this time or given back."""
HELD_PART: Final = 50
"""A permit of a log or bucket is held for at most one part in so many of the time that empties it."""
MAX_WINDOW_SECONDS: Final = 366 * DAY_SECONDS
DURABLE_CALENDARS: Final = ("day", "week", "month", "year", "lifetime")

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/-]{{0,{MAX_NAME_LENGTH - 1}}}", re.ASCII)
_UNIT: Final = re.compile(rf"[a-z][a-z0-9_-]{{0,{MAX_UNIT_LENGTH - 1}}}", re.ASCII)
_IN_MICROS: Final = " Micros are millionths of the currency, so that 500.00 is 500000000."
UNIT_RULE: Final = f"1 to {MAX_UNIT_LENGTH} of the characters a-z 0-9 _ - and begin with a letter"
_RESPONSES: Final = re.compile(r"[1-5](xx|\d\d)", re.ASCII)


class InvalidLimit(ValueError):
    """
    A limit that no enforcer could enforce.

    Attributes:
        field: Name of the field that is wrong, as in JSON.
        reason: The rule that it breaks, as a sentence.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class LimitKeywords(TypedDict, total=False):
    """The arguments of :class:`Limit`."""

    name: str
    algorithm: Algorithm
    quota: int
    window_seconds: int | None
    calendar: Calendar | None
    time_zone: str
    anchor: Anchor
    burst: int | None
    rollover: int | None
    unit: str
    partition_by: tuple[str, ...]
    match: Match
    mode: Mode
    consistency: Consistency
    on_store_failure: StoreFailure
    charge_on: tuple[str, ...]
    weights: Mapping[str, int]
    unpriced: str | Mapping[str, str]
    unmetered: str
    published: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """
    One limit, with its algorithm, quota, window and unit, the requests that it applies to, and its behaviour.

    Args:
        name: Its identity within a policy or a call, 1 to 64 of ``A-Z a-z 0-9 . _ : / -``. Empty: made from the quota
            and the window.
        algorithm: One of :data:`ALGORITHMS`.
        quota: Permits in each window, 0 to 2**53 - 1. 0 denies all requests.
        window_seconds: 1 to 31,622,400. For ``concurrency`` it is the lifetime of a slot.
        calendar: Replaces the window of a ``fixed_window``. One of :data:`~enforcement.model.calendars.CALENDARS`.
        time_zone: IANA name of the calendar's time zone.
        anchor: Where a calendar window begins: month 1-31, week 1-7 (Monday 1), day ``"HH:MM"``, year ``"MM-DD"``.
        burst: Capacity of a ``token_bucket``. None: the quota.
        rollover: With a calendar, how many unspent permits at most a window leaves to the next. None: none.
        unit: What is counted, such as ``requests``, ``tokens`` or ``micros``.
        partition_by: At most 4 attributes, or labels of the token such as ``label.team``. Each of their values has a
            counter of its own.
        match: Which requests it applies to.
        mode: ``enforce``, or ``shadow``, which counts and reports but never denies.
        consistency: ``strict``, or ``leased``, which charges permits in advance and uses them without a round trip.
        on_store_failure: ``local``, ``allow`` or ``deny``. Decides while the store is unavailable.
        charge_on: Classes or codes of responses (``"2xx"``, ``"404"``) that are charged, at settlement. Empty: every
            request is charged at once.
        weights: For a unit of tokens, what a token of each usage class counts, per mille, such as
            ``{"cached_input": 100}``. A class that is left out counts 1000.
        unpriced: For ``micros``, what happens to a request for a model without a price. ``deny``, ``count_only``, or
            ``{"charge_as": model}``, which takes the price of another model.
        unmetered: For tokens and ``micros``, what happens if no meter can read a request. ``deny`` or ``count_only``.
        published: Whether it is part of a published document or saved row, in which 0.2.0 accepted ``localtime``.
    Raises:
        InvalidLimit: A field breaks a rule.
    """

    name: str = ""
    algorithm: Algorithm = "fixed_window"
    quota: int
    window_seconds: int | None = None
    calendar: Calendar | None = None
    time_zone: str = "UTC"
    anchor: Anchor = None
    burst: int | None = None
    rollover: int | None = None
    unit: str = "requests"
    partition_by: tuple[str, ...] = ()
    match: Match = field(default_factory=Match)
    mode: Mode = "enforce"
    consistency: Consistency = "strict"
    on_store_failure: StoreFailure = "local"
    charge_on: tuple[str, ...] = ()
    weights: Mapping[str, int] = field(default_factory=FrozenMapping)
    unpriced: str | Mapping[str, str] = DENY
    unmetered: str = DENY
    published: InitVar[bool] = False

    FIELDS: ClassVar[frozenset[str]]

    if not TYPE_CHECKING:

        def __new__(cls, *values, **keywords):
            if values:
                raise TypeError(
                    "Limit() takes keywords only, as in Limit(quota=5, window_seconds=60) or Limit.parse('5/minute')."
                )
            return object.__new__(cls)

    def __post_init__(self, published: bool) -> None:
        _one_of("algorithm", self.algorithm, ALGORITHMS)
        _integer("quota", self.quota, 0, MAX_NUMBER, _IN_MICROS if self.unit == MONEY else "")
        self._check_window()
        if not published and is_host_zone(self.time_zone):
            reason = "Must be the IANA name of a time zone, like Europe/Berlin, because each host has its own"
            raise InvalidLimit("time_zone", f"{reason} {self.time_zone}.")
        self._check_bucket()
        self._check_names(published)
        self._check_metering()
        _one_of("mode", self.mode, MODES)
        _one_of("consistency", self.consistency, CONSISTENCIES)
        _one_of("on_store_failure", self.on_store_failure, STORE_FAILURES)
        if self.consistency == "leased" and (self.algorithm == "concurrency" or self.rollover):
            kind = "limit with a rollover." if self.rollover else "concurrency limit. Its slots are held, not spent."
            raise InvalidLimit("consistency", f"Must be strict for a {kind}")
        if not isinstance(self.match, Match):
            raise InvalidLimit("match", "Must be a mapping of methods, path and attributes.")
        if not self.name:
            object.__setattr__(self, "name", rate_name(self.quota, self.window_seconds, self.calendar))

    @property
    def capacity(self) -> int:
        """
        The greatest cost that can ever be admitted, which is the quota, with a rollover their sum, or of a bucket its
        burst, less a part if leasable.

        A leased bucket admits less than its burst. Permits flow back into it while others are held, and all of them
        could be used in one moment.
        """
        if self.algorithm != "token_bucket" or self.quota == 0:
            return min(self.quota + self.rollover, MAX_NUMBER) if self.rollover and self.quota else self.quota
        return self._burst - (-(-self.quota * self.held_us // self._length_us) if self.leasable else 0)

    @property
    def largest_cost(self) -> int:
        """The greatest cost that one request can have, which is the capacity, but has a bound for slots."""
        return min(self.capacity, MAX_SLOTS_PER_REQUEST) if self.algorithm == "concurrency" else self.capacity

    @property
    def _burst(self) -> int:
        return self.quota if self.burst is None else self.burst

    @property
    def _length_us(self) -> int:
        return (self.window_seconds or 0) * SECOND_US

    @property
    def shadow(self) -> bool:
        """Whether the limit counts and reports but never denies."""
        return self.mode == "shadow"

    @property
    def durable(self) -> bool:
        """
        Whether the limit's counters survive a store that loses its data. They do if a window lasts at least a day.
        """
        if self.algorithm != "fixed_window":
            return False
        return self.calendar in DURABLE_CALENDARS or (self.window_seconds or 0) >= DAY_SECONDS

    @property
    def leasable(self) -> bool:
        """
        Whether permits of the limit are charged in advance.

        This needs a cost that is the same for every request and is charged at once. A small bucket is never leased,
        because it would be empty while its permits are held.
        """
        if self.consistency != "leased" or self.unit != "requests" or self.shadow or self.charge_on:
            return False
        return self.algorithm != "token_bucket" or self._burst >= HELD_PART

    @property
    def held_us(self) -> int:
        """
        How long a process may hold a permit that it charged in advance, in microseconds.

        All permits leave a window at its end, so a held permit is simply not used after it. Permits leave a log or a
        bucket one by one, perhaps while they are held. There the time is short, and each permit counts longer by it.
        """
        if self.algorithm == "sliding_log":
            return min(MAX_HELD_US, self._length_us // HELD_PART)
        if self.algorithm == "token_bucket" and self.quota:
            return min(MAX_HELD_US, self._burst * self._length_us // (HELD_PART * self.quota))
        return MAX_HELD_US

    @classmethod
    def parse(cls, text: str, /, **keywords: Unpack[LimitKeywords]) -> Self:
        """
        Return a limit from a string such as ``"100/minute"``, ``"10 per 2 seconds"`` or ``"100/5m"``.

        Months and years become ``fixed_window`` limits of the calendar, because they differ in length. All other rates
        become a ``sliding_window``.

        Args:
            keywords: Arguments of the constructor. They replace those of the notation.
        Raises:
            InvalidLimit: The string is not ``<quota>/[<number>] <period>``.
        """
        try:
            rate = parse_rate(text)
        except ValueError as exc:
            raise InvalidLimit("text", str(exc)) from exc
        return cls(**{**rate, **keywords})

    @classmethod
    def parse_many(cls, text: str, /, **keywords: Unpack[LimitKeywords]) -> tuple[Self, ...]:
        """
        Return one limit for each rate in a string such as ``"10/minute; 1000/day"``.

        Rates are separated by ``;``, ``,`` or ``|``.

        Raises:
            InvalidLimit: A part breaks a rule of :meth:`parse`.
        """
        return tuple(cls.parse(part, **keywords) for part in split_rates(text))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return the limit as JSON values for :meth:`from_json`, without the fields that have their default."""
        data: dict[str, object] = {"name": self.name, "algorithm": self.algorithm, "quota": self.quota}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in data or value == _default(spec):
                continue
            if isinstance(value, Match):
                value = value.to_json()
            elif isinstance(value, FrozenMapping):
                value = dict(value)
            data[spec.name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_json(cls, data: object, *, published: bool = False) -> Self:
        """
        Return the limit that JSON values describe.

        Args:
            published: As for the class.
        Raises:
            InvalidLimit: A field is unknown, is missing, has the wrong type or breaks a rule.
        """
        if not isinstance(data, Mapping):
            raise InvalidLimit("limit", "Must be a JSON object.")
        unknown = sorted(map(str, set(data) - cls.FIELDS))
        if unknown:
            raise InvalidLimit(unknown[0], "Unknown field.")
        for required in ("name", "algorithm", "quota"):
            if required not in data:
                raise InvalidLimit(required, "Is required.")
        values = dict(data)
        for name in ("partition_by", "charge_on"):
            values[name] = _strings(name, values.get(name, ()))
        try:
            values["match"] = Match.from_json(values.get("match", {}), published=published)
        except InvalidMatch as exc:
            raise InvalidLimit(f"match.{exc.field}", exc.reason) from exc
        return cls(**values, published=published)

    def _check_window(self) -> None:
        if self.calendar is not None and str(self.calendar):
            _one_of("calendar", self.calendar, CALENDARS)
            if self.algorithm != "fixed_window":
                raise InvalidLimit("calendar", "Only a fixed_window follows the calendar.")
            if self.window_seconds is not None:
                raise InvalidLimit("window_seconds", "Give window_seconds or calendar, not both.")
        else:
            object.__setattr__(self, "calendar", None)
            if self.window_seconds is None:
                raise InvalidLimit("window_seconds", "Is required, unless a fixed_window follows the calendar.")
            if type(self.window_seconds) is not int:
                raise InvalidLimit(
                    "window_seconds", f"Must be an integer of seconds, got {shown(self.window_seconds)}."
                )
            if not is_integer(self.window_seconds, 1, MAX_WINDOW_SECONDS):
                raise InvalidLimit("window_seconds", "Must last between a second and a year.")
        if (self.calendar is not None or self.time_zone != "UTC") and not is_zone(self.time_zone):
            raise InvalidLimit("time_zone", "Must be the IANA name of a time zone, like Europe/Berlin.")
        if self.calendar is None and self.time_zone != "UTC":
            raise InvalidLimit("time_zone", "Only a calendar window has a time zone.")
        object.__setattr__(self, "anchor", _checked("anchor", read_anchor, self.calendar, self.anchor))
        _checked("rollover", check_rollover, self.calendar, self.rollover)

    def _check_bucket(self) -> None:
        if self.burst is None:
            return
        if self.algorithm != "token_bucket":
            raise InvalidLimit("burst", "Only a token_bucket has a burst.")
        _integer("burst", self.burst, 1, MAX_NUMBER)

    def _check_names(self, published: bool) -> None:
        if not isinstance(self.name, str) or (self.name and not _NAME.fullmatch(self.name)):
            raise InvalidLimit(
                "name",
                f"Must be 1 to {MAX_NAME_LENGTH} of the characters A-Z a-z 0-9 . _ : / - and begin with a letter or "
                "digit.",
            )
        if not isinstance(self.unit, str) or not is_unit(self.unit):
            raise InvalidLimit("unit", f"Must be {UNIT_RULE}.")
        object.__setattr__(self, "partition_by", _strings("partition_by", self.partition_by))
        object.__setattr__(self, "charge_on", _strings("charge_on", self.charge_on))
        if len(self.partition_by) > MAX_PARTITIONS or len(set(self.partition_by)) < len(self.partition_by):
            raise InvalidLimit("partition_by", f"Must name at most {MAX_PARTITIONS} attributes, each once.")
        for name in self.partition_by:
            if not is_attribute_name(name):
                raise InvalidLimit("partition_by", f"An attribute must be {ATTRIBUTE_NAME_RULE}, got {shown(name)}.")
            if not published and not may_exist(name):
                raise InvalidLimit("partition_by", no_label(name))
        if any(not _RESPONSES.fullmatch(name) for name in self.charge_on):
            raise InvalidLimit("charge_on", 'Must list response classes or codes, like "2xx" or "404".')

    def _check_metering(self) -> None:
        try:
            weights, unpriced = check_limit(self.unit, self.weights, self.unpriced, self.unmetered)
        except InvalidMetering as exc:
            raise InvalidLimit(exc.field, exc.reason) from exc
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "unpriced", unpriced)


Limit.FIELDS = frozenset(spec.name for spec in fields(Limit))


def is_unit(name: str) -> bool:
    """Return whether a string may be the name of a unit, see :data:`UNIT_RULE`."""
    return _UNIT.fullmatch(name) is not None


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InvalidLimit(name, f"Must be one of {', '.join(choices)}, got {shown(value)}.")


def _integer(name: str, value: object, least: int, most: int, hint: str = "") -> None:
    if not is_integer(value, least, most):
        raise InvalidLimit(name, _sentence(integer_rule(value, least, most)) + hint)


def _checked(name: str, check: Callable[[Any, Any], Any], calendar: str | None, value: object) -> Any:
    try:
        return check(calendar, value)
    except ValueError as exc:
        raise InvalidLimit(name, _sentence(str(exc))) from exc


def _sentence(rule: str) -> str:
    return f"{rule[0].upper()}{rule[1:]}."


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or any(not isinstance(item, str) for item in value):
        raise InvalidLimit(name, "Must be a list of strings.")
    return tuple(value)


def _default(spec: Field[object]) -> object:
    return spec.default_factory() if spec.default_factory is not MISSING else spec.default
