"""
What a limit is: frozen values, checked when they are built, to and from JSON.

These are the only rules of a valid limit. The control plane's models, its forms, its API and every enforcer build this
value, so that no door admits what another refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import time
from typing import Any, ClassVar, Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from enforcement.model.calendars import CALENDARS, Anchor
from enforcement.model.matching import AttributeRule, InvalidMatch, Match
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY, MAX_PARTITIONS

ALGORITHMS: Final = ("fixed_window", "sliding_window", "sliding_log", "token_bucket", "concurrency")
MODES: Final = ("enforce", "shadow")
CONSISTENCIES: Final = ("strict", "leased")
STORE_FAILURES: Final = ("local", "allow", "deny")

MAX_NUMBER: Final = 2**53 - 1
"""Numbers pass through Lua, which counts in doubles: exact up to here, and refused beyond."""
MAX_HELD_US: Final = 1_000_000
"""A leased permit is handed out within this time or given back."""
HELD_PART: Final = 50
"""From a log or bucket, within this part of the time that empties it."""
MAX_WINDOW_SECONDS: Final = 366 * 86_400
DAY_SECONDS: Final = 86_400
DURABLE_CALENDARS: Final = ("day", "week", "month", "year", "lifetime")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", re.ASCII)
_UNIT: Final = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
_ATTRIBUTE: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}", re.ASCII)
_RESPONSES: Final = re.compile(r"[1-5](xx|\d\d)", re.ASCII)
# A single letter has no plural: "ms" would be read as minutes.
_RATE: Final = re.compile(
    r"\s*(\d{1,16})\s*(?:/|\s+per\s+)\s*(\d{1,8})?\s*(?:([smhd])|([a-z]{2,}?)s?)\s*", re.ASCII | re.IGNORECASE
)
_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}
_SHORT: Final = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}


class InvalidLimit(ValueError):
    """
    A limit that no enforcer could enforce.

    Attributes:
        field: Name of the field at fault, as in JSON.
        reason: The rule it breaks, a sentence for people.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """
    One limit: an algorithm, a quota, a window, a unit, whom it falls on and how it behaves.

    Args:
        name: Its identity within a policy or a call; 1 to 64 of ``A-Z a-z 0-9 . _ : / -``. Empty: made of the numbers.
        algorithm: One of :data:`ALGORITHMS`.
        quota: Permits a window, 0 to 2**53 - 1; 0 denies all.
        window_seconds: 1 to 31,622,400; of a ``concurrency`` limit the lifetime of a slot.
        calendar: In place of the window, for ``fixed_window``: one of :data:`~enforcement.model.calendars.CALENDARS`.
        time_zone: IANA name of the calendar's zone.
        anchor: Where a calendar window begins: month 1-31, week 1-7 (Monday 1), day ``"HH:MM"``, year ``"MM-DD"``.
        burst: Capacity of a ``token_bucket``; None: the quota.
        unit: What is counted: ``requests``, ``tokens``, ``micros`` ...
        partition_by: Attributes that each get a counter of their own, at most 4.
        match: Which requests it falls on.
        mode: ``enforce``, or ``shadow``: counted and reported, never denying.
        consistency: ``strict``, or ``leased``: permits are taken ahead and handed out without a round trip.
        on_store_failure: ``local``, ``allow`` or ``deny``.
        charge_on: Response classes (``"2xx"``, ``"404"``) that are charged, at settlement; empty: all, at once.
    Raises:
        InvalidLimit: A field breaks a rule.
    """

    name: str = ""
    algorithm: str = "fixed_window"
    quota: int
    window_seconds: int | None = None
    calendar: str | None = None
    time_zone: str = "UTC"
    anchor: Anchor = None
    burst: int | None = None
    unit: str = "requests"
    partition_by: tuple[str, ...] = ()
    match: Match = field(default_factory=Match)
    mode: str = "enforce"
    consistency: str = "strict"
    on_store_failure: str = "local"
    charge_on: tuple[str, ...] = ()

    FIELDS: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        _one_of("algorithm", self.algorithm, ALGORITHMS)
        _whole("quota", self.quota, 0, MAX_NUMBER)
        self._check_window()
        self._check_bucket()
        self._check_names()
        _one_of("mode", self.mode, MODES)
        _one_of("consistency", self.consistency, CONSISTENCIES)
        _one_of("on_store_failure", self.on_store_failure, STORE_FAILURES)
        if self.consistency == "leased" and self.algorithm == "concurrency":
            raise InvalidLimit("consistency", "A concurrency limit cannot be leased: a slot is held, not spent.")
        if not isinstance(self.match, Match):
            raise InvalidLimit("match", "Must be a mapping of methods, path and attributes.")
        if not self.name:
            object.__setattr__(self, "name", self._made_name())

    @property
    def capacity(self) -> int:
        """
        The greatest cost that can ever pass: the burst of a bucket, the quota of everything else.

        A leased bucket keeps back what flows into it while a permit is held: handed out late, that finds it refilled.
        """
        if self.algorithm != "token_bucket" or self.quota == 0:
            return self.quota
        return self._burst - (-(-self.quota * self.held_us // self._length_us) if self.leasable else 0)

    @property
    def _burst(self) -> int:
        return self.quota if self.burst is None else self.burst

    @property
    def _length_us(self) -> int:
        return (self.window_seconds or 0) * 1_000_000

    @property
    def shadow(self) -> bool:
        """Whether it only watches."""
        return self.mode == "shadow"

    @property
    def durable(self) -> bool:
        """Whether its counters outlive a store that loses them: its windows last a day or longer, or for ever."""
        if self.algorithm != "fixed_window":
            return False
        return self.calendar in DURABLE_CALENDARS or (self.window_seconds or 0) >= DAY_SECONDS

    @property
    def leasable(self) -> bool:
        """Whether permits are taken ahead: only of what every request costs alike, and at once; of no small bucket."""
        if self.consistency != "leased" or self.unit != "requests" or self.shadow or self.charge_on:
            return False
        return self.algorithm != "token_bucket" or self._burst >= HELD_PART

    @property
    def held_us(self) -> int:
        """
        How long a process may hold a permit that it took ahead, at most, microseconds.

        Permits leave a window all at once, so they are simply not handed out beyond it. They leave a log or a bucket
        one by one, perhaps while they are held: there the time is short, and a permit is felt that much longer.
        """
        if self.algorithm == "sliding_log":
            return min(MAX_HELD_US, self._length_us // HELD_PART)
        if self.algorithm == "token_bucket" and self.quota:
            return min(MAX_HELD_US, self._burst * self._length_us // (HELD_PART * self.quota))
        return MAX_HELD_US

    @classmethod
    def parse(cls, text: str, /, **keywords: Any) -> Self:
        """
        Build a limit from the notation of other libraries: ``"100/minute"``, ``"10 per 2 seconds"``, ``"100/5m"``.

        Months and years become ``fixed_window`` limits of the calendar, for no month has 30 days on principle;
        everything else becomes a ``sliding_window``. *keywords* are those of the constructor and win.

        Raises:
            InvalidLimit: The text is not ``<quota>/[<number>] <period>``.
        """
        found = _RATE.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            several = isinstance(text, str) and re.search("[;,|]", text)
            more = " Limit.parse_many() reads several." if several else ""
            raise InvalidLimit("text", f'Must be like "100/minute" or "10 per 2 seconds", not {text!r}.{more}')
        quota, multiple, period = int(found[1]), int(found[2] or 1), (found[3] or found[4]).lower()
        period = _SHORT.get(period, period)
        if period in _SECONDS:
            shape = {"algorithm": "sliding_window", "window_seconds": multiple * _SECONDS[period]}
        elif period in ("month", "year") and multiple == 1:
            shape = {"algorithm": "fixed_window", "calendar": period}
        else:
            raise InvalidLimit("text", f"{found[0].strip()!r}: the period must be seconds to weeks, a month or a year.")
        return cls(**{"quota": quota, **shape, **keywords})

    @classmethod
    def parse_many(cls, text: str, /, **keywords: Any) -> tuple[Self, ...]:
        """
        Build one limit from each part of a text: ``"10/minute; 1000/day"``, with ``;``, ``,`` or ``|`` between them.

        Raises:
            InvalidLimit: As :meth:`parse` does, of the first part that is none.
        """
        parts = re.split("[;,|]", text) if isinstance(text, str) else [text]
        return tuple(cls.parse(part, **keywords) for part in parts)

    def to_json(self) -> dict[str, Any]:
        """Return the limit as JSON values, fields at their defaults left out; ``Limit.from_json`` reads it back."""
        data: dict[str, Any] = {"name": self.name, "algorithm": self.algorithm, "quota": self.quota}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in data or value == _default(spec):
                continue
            if spec.name == "match":
                value = value.to_json()
            data[spec.name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_json(cls, data: object) -> Self:
        """
        Read a limit from JSON values, strictly.

        Raises:
            InvalidLimit: An unknown field, a wrong type or a broken rule; never a limit that means something else.
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
            values[name] = _texts(name, values.get(name, ()))
        try:
            values["match"] = Match.from_json(values.get("match", {}))
        except InvalidMatch as exc:
            raise InvalidLimit(f"match.{exc.field}", exc.reason) from exc
        return cls(**values)

    def _check_window(self) -> None:
        if self.calendar is not None and self.calendar != "":
            _one_of("calendar", self.calendar, CALENDARS)
            if self.algorithm != "fixed_window":
                raise InvalidLimit("calendar", "Only a fixed_window follows the calendar.")
            if self.window_seconds is not None:
                raise InvalidLimit("window_seconds", "Give window_seconds or calendar, not both.")
        else:
            object.__setattr__(self, "calendar", None)
            if self.window_seconds is None:
                raise InvalidLimit("window_seconds", "Is required, unless a fixed_window follows the calendar.")
            _whole(
                "window_seconds", self.window_seconds, 1, MAX_WINDOW_SECONDS, "Must last between a second and a year."
            )
        _zone(self.time_zone)
        if self.calendar is None and self.time_zone != "UTC":
            raise InvalidLimit("time_zone", "Only a calendar window has a time zone.")
        object.__setattr__(self, "anchor", _anchor(self.calendar, self.anchor))

    def _check_bucket(self) -> None:
        if self.burst is None:
            return
        if self.algorithm != "token_bucket":
            raise InvalidLimit("burst", "Only a token_bucket has a burst.")
        _whole("burst", self.burst, 1, MAX_NUMBER)

    def _check_names(self) -> None:
        if not isinstance(self.name, str) or (self.name and not _NAME.fullmatch(self.name)):
            raise InvalidLimit(
                "name", "Must be 1 to 64 of the characters A-Z a-z 0-9 . _ : / - and begin with a letter or digit."
            )
        if not isinstance(self.unit, str) or not _UNIT.fullmatch(self.unit):
            raise InvalidLimit("unit", "Must be 1 to 32 of the characters a-z 0-9 _ and begin with a letter.")
        object.__setattr__(self, "partition_by", _texts("partition_by", self.partition_by))
        object.__setattr__(self, "charge_on", _texts("charge_on", self.charge_on))
        if len(self.partition_by) > MAX_PARTITIONS or len(set(self.partition_by)) < len(self.partition_by):
            raise InvalidLimit("partition_by", f"Must name at most {MAX_PARTITIONS} attributes, each once.")
        for name in self.partition_by:
            if not _ATTRIBUTE.fullmatch(name):
                raise InvalidLimit("partition_by", "An attribute is 1 to 64 of a-z 0-9 . _ - and begins with a letter.")
        if any(not _RESPONSES.fullmatch(name) for name in self.charge_on):
            raise InvalidLimit("charge_on", 'Must list response classes or codes, like "2xx" or "404".')

    def _made_name(self) -> str:
        if self.calendar is not None:
            return f"{self.quota}-per-{self.calendar}"
        seconds = self.window_seconds
        for period in ("week", "day", "hour", "minute", "second"):
            if seconds is not None and seconds % _SECONDS[period] == 0:
                multiple = seconds // _SECONDS[period]
                return f"{self.quota}-per-{period}" if multiple == 1 else f"{self.quota}-per-{multiple}-{period}s"
        return f"{self.quota}-per-window"


Limit.FIELDS = frozenset(spec.name for spec in fields(Limit))


@dataclass(frozen=True, slots=True)
class Policy:
    """A named list of limits, attached to tokens, to projects, or to everything."""

    id: str
    slug: str
    limits: tuple[Limit, ...]
    name: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        if len(self.limits) > MAX_LIMITS_PER_POLICY:
            raise InvalidLimit("limits", f"A policy holds at most {MAX_LIMITS_PER_POLICY} limits.")
        names = [limit.name for limit in self.limits]
        if len(set(names)) < len(names):
            raise InvalidLimit("limits", "Each limit of a policy has a name of its own.")


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InvalidLimit(name, f"Must be one of {', '.join(choices)}.")


def _whole(name: str, value: object, least: int, most: int, reason: str = "") -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidLimit(name, reason or f"Must be a whole number from {least} to {most}.")


def _texts(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or any(not isinstance(item, str) for item in value):
        raise InvalidLimit(name, "Must be a list of texts.")
    return tuple(value)


def _zone(name: object) -> None:
    try:
        ZoneInfo(name if isinstance(name, str) else "")
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise InvalidLimit("time_zone", "Must be the IANA name of a time zone, like Europe/Berlin.") from exc


def _anchor(calendar: str | None, value: object) -> Anchor:
    """Return the anchor in its one spelling: a number for weeks and months, text for days and years."""
    if value is None or value == "":
        return None
    most = {"week": 7, "month": 31}.get(calendar or "")
    if most is not None:
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        _whole("anchor", number, 1, most, f"Must be a whole number from 1 to {most}.")
        return number if isinstance(number, int) else None
    if calendar == "day" and _is_clock(value):
        return str(value)
    if calendar == "year" and _is_date(value):
        return str(value)
    rules = {"day": 'Must be "HH:MM".', "year": 'Must be "MM-DD".'}
    raise InvalidLimit("anchor", rules.get(calendar or "", "Only days, weeks, months and years have an anchor."))


def _is_clock(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"\d\d:\d\d", value, re.ASCII):
        return False
    try:
        time.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_date(value: object) -> bool:
    days = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if not isinstance(value, str) or not re.fullmatch(r"\d\d-\d\d", value, re.ASCII):
        return False
    month, day = map(int, value.split("-"))
    return 1 <= month <= 12 and 1 <= day <= days[month - 1]


def _default(spec: Any) -> object:
    return spec.default_factory() if spec.default_factory is not MISSING else spec.default


__all__ = [
    "ALGORITHMS",
    "CALENDARS",
    "CONSISTENCIES",
    "MAX_LIMITS_PER_POLICY",
    "MAX_NUMBER",
    "MODES",
    "STORE_FAILURES",
    "AttributeRule",
    "InvalidLimit",
    "Limit",
    "Match",
    "Policy",
]
