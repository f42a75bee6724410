"""
Windows of the calendar: real days, weeks, months and years of a time zone, as instants in microseconds.

Boundaries come from the tz data of this process, never from a month of 30 days. A clock that is set forward or back
shortens or lengthens the day it happens on; the hour that autumn repeats is two windows.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

CALENDARS: Final = ("minute", "hour", "day", "week", "month", "year", "lifetime")

Anchor = int | str | None
Window = tuple[int, int]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SHORT: Final = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


def window(now_us: int, calendar: str, zone: str = "UTC", anchor: Anchor = None) -> Window:
    """
    Return the calendar window that holds an instant.

    Args:
        now_us: Microseconds since the epoch.
        calendar: ``minute`` to ``year``; a ``lifetime`` has no window.
        zone: IANA name of the time zone whose clock is meant.
        anchor: Where a window begins: day of the month 1-31 (clamped to the month's last), ISO weekday 1-7,
            ``"HH:MM"`` of a day, ``"MM-DD"`` of a year. None: the first, Monday, midnight, January 1st.
    Returns:
        (start, end) in microseconds, start <= now < end.
    """
    instant = _EPOCH + timedelta(microseconds=now_us)
    tz = ZoneInfo(zone)
    if calendar in _SHORT:
        return _short_window(instant, tz, _SHORT[calendar])
    start, end = _dated_window(instant, tz, calendar, anchor)
    return _microseconds(start), _microseconds(end)


@lru_cache(maxsize=1024)
def boundaries(within: Window, calendar: str, zone: str, anchor: Anchor) -> tuple[int, int, int, int]:
    """Return the boundaries of three windows in a row, the middle one being *within*."""
    before = window(within[0] - 1, calendar, zone, anchor)
    after = window(within[1], calendar, zone, anchor)
    return before[0], within[0], within[1], after[1]


def _short_window(instant: datetime, tz: ZoneInfo, length: timedelta) -> Window:
    """Cut the wall clock into minutes or hours; a change of offset ends one window and begins another."""
    local = instant.astimezone(tz)
    offset = local.utcoffset() or timedelta()
    since = timedelta(minutes=local.minute if length > _SHORT["minute"] else 0)
    start = instant - since - timedelta(seconds=local.second, microseconds=local.microsecond)
    end = start + length
    if (start.astimezone(tz).utcoffset() or timedelta()) != offset:
        start = _transition(start, instant, tz)
    if ((end - _MICROSECOND).astimezone(tz).utcoffset() or timedelta()) != offset:
        end = _transition(instant, end, tz)
    return _microseconds(start), _microseconds(end)


def _transition(low: datetime, high: datetime, tz: ZoneInfo) -> datetime:
    """Return the first instant after *low* with the offset that holds at *high*'s side of the change, by bisection."""
    before = low.astimezone(tz).utcoffset()
    while high - low > _MICROSECOND:
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
    """Return the start of a window: *step* windows after the one whose name (date, month, year) *day* bears."""
    at = time()
    if calendar == "day":
        if isinstance(anchor, str):
            at = time.fromisoformat(anchor)
        first = day + timedelta(days=step)
    elif calendar == "week":
        first = day - timedelta(days=(day.isoweekday() - int(anchor or 1)) % 7) + timedelta(weeks=step)
    elif calendar == "month":
        months = day.year * 12 + day.month - 1 + step
        first = _clamped(months // 12, months % 12 + 1, int(anchor or 1))
    else:
        month, number = str(anchor or "01-01").split("-")
        first = _clamped(day.year + step, int(month), int(number))
    return datetime.combine(first, at, tz).astimezone(UTC)


def _clamped(year: int, month: int, day: int) -> date:
    return date(year, month, min(day, monthrange(year, month)[1]))


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND
