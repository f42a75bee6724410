"""
Compute the windows of a calendar, which are the real days, weeks, months and years of a time zone.

The boundaries come from the time zone data of this process. A change to or from summer time shortens or lengthens the
day on which it happens. The hour that is repeated in autumn is two windows.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from enforcement.model.checks import integer_rule, is_integer, shown
from enforcement.model.instants import MICROSECOND, from_us, to_us
from enforcement.model.sizes import MAX_NUMBER

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

CALENDARS: Final = ("minute", "hour", "day", "week", "month", "year", "lifetime")

Anchor = int | str | None
Window = tuple[int, int]

_HOST_ZONES: Final = ("localtime", "posixrules", "Factory")
_HOST_ZONE_FOLDERS: Final = ("posix/", "right/")
_SHORT: Final = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


def is_host_zone(zone: str) -> bool:
    """
    Return whether the name of a time zone may mean another time on each host, as ``localtime`` does.

    These are files that lie beside the IANA zones on many hosts. Enforcers with different files have different windows.
    """
    return zone in _HOST_ZONES or zone.startswith(_HOST_ZONE_FOLDERS)


def is_zone(name: object) -> bool:
    """Return whether this is the name of a time zone that this host knows."""
    try:
        _zone(name if isinstance(name, str) else "")
    except (KeyError, ValueError, OSError):
        return False
    return True


def _zone(name: str) -> ZoneInfo:
    """Return a time zone. Raises KeyError, ValueError or OSError if this host does not know it."""
    # Most limits have no calendar, and this takes as long to load as several modules of the library.
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def window(now_us: int, calendar: str, zone: str = "UTC", anchor: Anchor = None) -> Window:
    """
    Return the start and the end of the calendar window that contains an instant, in microseconds since the epoch.

    Args:
        now_us: Microseconds since the epoch.
        calendar: ``minute`` to ``year``. A ``lifetime`` has no window.
        zone: IANA name of the time zone.
        anchor: Where a window begins: day of the month 1-31 (at most the month's last), ISO weekday 1-7, ``"HH:MM"``
            of a day, ``"MM-DD"`` of a year. None: the first, Monday, midnight, January 1st.
    Returns:
        (start, end) in microseconds since the epoch, with start <= now < end.
    """
    instant = from_us(now_us)
    tz = _zone(zone)
    if calendar in _SHORT:
        return _short_window(instant, tz, _SHORT[calendar])
    start, end = _dated_window(instant, tz, calendar, anchor)
    return to_us(start), to_us(end)


@lru_cache(maxsize=1024)
def boundaries(within: Window, calendar: str, zone: str, anchor: Anchor) -> tuple[int, int, int, int]:
    """
    Return the four boundaries of three windows in a row, of which *within* is the second, in microseconds since the
    epoch.
    """
    before = window(within[0] - 1, calendar, zone, anchor)
    after = window(within[1], calendar, zone, anchor)
    return before[0], within[0], within[1], after[1]


def boundaries_around(now_us: int, calendar: str, zone: str, anchor: Anchor) -> tuple[int, ...]:
    """Return the :func:`boundaries` of three windows in a row, of which the second contains *now_us*."""
    return boundaries(window(now_us, calendar, zone, anchor), calendar, zone, anchor)


@lru_cache(maxsize=1024)
def number_of(start_us: int, calendar: str, zone: str, anchor: Anchor) -> int:
    """
    Return the number of the calendar window that begins at *start_us*. The next window has the next number.

    Minutes and hours are numbered by UTC. If a time zone changes its offset by half an hour, the parts of a divided
    hour may have the same number.
    """
    if calendar in _SHORT:
        return start_us // (_SHORT[calendar] // MICROSECOND)
    _, day, step = _place(start_us, calendar, zone, anchor)
    first = _first_day(day, step, calendar, anchor)
    numbers = {"week": first.toordinal() // 7, "month": first.year * 12 + first.month, "year": first.year}
    return numbers.get(calendar, first.toordinal())


def start_after(start_us: int, windows: int, calendar: str, zone: str, anchor: Anchor) -> int:
    """
    Return the start of the window that begins *windows* after the one that begins at *start_us*, in microseconds since
    the epoch.
    """
    if calendar in _SHORT:
        return window(start_us + windows * (_SHORT[calendar] // MICROSECOND), calendar, zone)[0]
    tz, day, step = _place(start_us, calendar, zone, anchor)
    return to_us(_start(day, step + windows, tz, calendar, anchor))


def _place(start_us: int, calendar: str, zone: str, anchor: Anchor) -> tuple[ZoneInfo, date, int]:
    """Return the time zone, and the day and the step by which :func:`_start` finds the window of this start."""
    tz = _zone(zone)
    day = from_us(start_us).astimezone(tz).date()
    step = max(step for step in (-1, 0, 1) if to_us(_start(day, step, tz, calendar, anchor)) <= start_us)
    return tz, day, step


def _short_window(instant: datetime, tz: ZoneInfo, length: timedelta) -> Window:
    """
    Return the start and the end of the local clock's minute or hour around *instant*, in microseconds since the epoch.
    A change of the offset from UTC begins a new window.
    """
    local = instant.astimezone(tz)
    offset = local.utcoffset() or timedelta()
    since = timedelta(minutes=local.minute if length > _SHORT["minute"] else 0)
    start = instant - since - timedelta(seconds=local.second, microseconds=local.microsecond)
    end = start + length
    if (start.astimezone(tz).utcoffset() or timedelta()) != offset:
        start = _transition(start, instant, tz)
    if ((end - MICROSECOND).astimezone(tz).utcoffset() or timedelta()) != offset:
        end = _transition(instant, end, tz)
    return to_us(start), to_us(end)


def _transition(low: datetime, high: datetime, tz: ZoneInfo) -> datetime:
    """Return the first instant between *low* and *high* at which the offset of *low* no longer holds."""
    before = low.astimezone(tz).utcoffset()
    while high - low > MICROSECOND:
        middle = low + (high - low) / 2
        if middle.astimezone(tz).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def _dated_window(instant: datetime, tz: ZoneInfo, calendar: str, anchor: Anchor) -> tuple[datetime, datetime]:
    day = instant.astimezone(tz).date()
    starts = [_start(day, step, tz, calendar, anchor) for step in (-1, 0, 1, 2)]
    for start, end in pairwise(starts):
        if start <= instant < end:
            return start, end
    raise AssertionError("windows of a calendar leave no gap")


def _start(day: date, step: int, tz: ZoneInfo, calendar: str, anchor: Anchor) -> datetime:
    """
    Return the start, in UTC, of the window that begins in the day, week, month or year of *day*, or *step* of these
    later.
    """
    at = time.fromisoformat(anchor) if calendar == "day" and isinstance(anchor, str) else time()
    return datetime.combine(_first_day(day, step, calendar, anchor), at, tz).astimezone(UTC)


def _first_day(day: date, step: int, calendar: str, anchor: Anchor) -> date:
    """Return the date on which a window begins, as for :func:`_start`."""
    if calendar == "day":
        return day + timedelta(days=step)
    if calendar == "week":
        return day - timedelta(days=(day.isoweekday() - int(anchor or 1)) % 7) + timedelta(weeks=step)
    if calendar == "month":
        months = day.year * 12 + day.month - 1 + step
        return _clamped(months // 12, months % 12 + 1, int(anchor or 1))
    month, number = str(anchor or "01-01").split("-")
    return _clamped(day.year + step, int(month), int(number))


def _clamped(year: int, month: int, day: int) -> date:
    return date(year, month, min(day, monthrange(year, month)[1]))


def read_anchor(calendar: str | None, value: object) -> Anchor:
    """
    Return a valid anchor as an integer or a string, or None if there is none, or raise ValueError.

    Args:
        calendar: One of :data:`CALENDARS`, or None.
        value: An anchor. The number of a week or month may be a string.
    Returns:
        An integer for weeks and months, a string for days and years, None if *value* is None or empty.
    Raises:
        ValueError: The anchor does not fit the calendar. The message is the rule that it breaks.
    """
    if value is None or value == "":
        return None
    most = {"week": 7, "month": 31}.get(calendar or "")
    if most is not None:
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        if not is_integer(number, 1, most):
            raise ValueError(integer_rule(number, 1, most))
        return number if isinstance(number, int) else None
    if calendar == "day" and _is_clock(value):
        return str(value)
    if calendar == "year" and _is_date(value):
        return str(value)
    format_ = {"day": '"HH:MM"', "year": '"MM-DD"'}.get(calendar or "")
    if format_ is None:
        raise ValueError("only days, weeks, months and years have an anchor")
    raise ValueError(f"must be {format_}, got {shown(value)}")


def check_rollover(calendar: str | None, value: object) -> None:
    """Raise ValueError if *value* is neither None nor the number of permits that a window can carry over."""
    if value is None:
        return
    if calendar is None or calendar == "lifetime":
        raise ValueError("only a fixed_window of the calendar that ends, such as month, has a rollover")
    if not is_integer(value, 1, MAX_NUMBER):
        raise ValueError(integer_rule(value, 1, MAX_NUMBER))


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
