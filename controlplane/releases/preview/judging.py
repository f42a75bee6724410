"""Limits that recorded usage can be replayed for, and those that only a shadow can tell about."""

from dataclasses import dataclass

from enforcement.model.calendars import CALENDARS, window
from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, SECOND_US
from enforcement.model.limits import Limit
from enforcement.model.metered import MONEY
from enforcement.usage.spread import PART_SECONDS

# About the lengths of the calendar's windows, which only say how long a counter remembers.
_CALENDAR_SECONDS = dict(
    zip(CALENDARS, (60, 3600, DAY_SECONDS, 7 * DAY_SECONDS, 31 * DAY_SECONDS, 366 * DAY_SECONDS, 0), strict=True)
)
LIFETIME_SECONDS = 366 * DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Unknown:
    """A limit that recorded usage cannot judge, and the reason as a sentence."""

    limit: str
    reason: str


def unknown_about(limit: Limit) -> str:
    """Return why recorded usage cannot judge a limit, or nothing if it can."""
    if limit.algorithm == "concurrency":
        return "How many requests ran at a time is not recorded."
    if limit.unit != "requests":
        unit = "money" if limit.unit == MONEY else limit.unit.replace("_", " ")
        return f"What requests cost in {unit} is not recorded before a limit denies them."
    parts = [*(["methods"] if limit.match.methods else []), *(["path"] if limit.match.path else [])]
    parts += [*sorted(limit.match.attributes), *(name for name in limit.partition_by)]
    if parts:
        named = " and ".join(dict.fromkeys(parts))
        return f"The {named} of requests {'are' if len(parts) > 1 or parts == ['methods'] else 'is'} not recorded."
    return ""


# No counter is followed for longer before the span of a preview.
MOST_BEFORE = DAY_SECONDS


def cautions_about(limit: Limit) -> list[str]:
    """Return what the reader of a preview of a limit that can be judged has to know, as sentences."""
    result = []
    if limit.charge_on:
        result.append("Judged as if each request were charged at once, because responses are not recorded.")
    if limit.rollover:
        result.append("What earlier windows left is not considered.")
    memory = window_seconds(limit) * (2 if limit.algorithm == "sliding_window" else 1)
    if memory > MOST_BEFORE:
        result.append(
            "What was used more than 24 hours before this time is not considered, though the limit remembers it."
        )
    return result


def window_seconds(limit: Limit) -> int:
    """Return about how many seconds a counter remembers a charge."""
    if limit.calendar:
        return _CALENDAR_SECONDS[limit.calendar] or LIFETIME_SECONDS
    length = limit.window_seconds or 1
    if limit.algorithm == "token_bucket" and limit.quota:
        return max(1, -(-max(limit.capacity, 1) * length // limit.quota))
    return length


def step_seconds(limits: list[Limit], *, coarse: bool) -> int:
    """Return how long a bin of the replay is: ten seconds, or a minute where that is enough or all that is known."""
    return MINUTE_SECONDS if coarse or all(map(_is_of_minutes, limits)) else PART_SECONDS


def _is_of_minutes(limit: Limit) -> bool:
    if limit.algorithm == "fixed_window":
        return bool(limit.calendar) or (limit.window_seconds or 1) % MINUTE_SECONDS == 0
    return window_seconds(limit) >= HOUR_SECONDS


def is_exact(limit: Limit, step: int) -> bool:
    """Return whether bins of so many seconds tell exactly what a limit denies."""
    return limit.algorithm == "fixed_window" and (bool(limit.calendar) or (limit.window_seconds or 1) % step == 0)


def starts_of(limit: Limit, begins: int, ends: int) -> list[int]:
    """Return the seconds since the epoch at which fixed windows begin, the first of which holds *begins*."""
    if limit.algorithm != "fixed_window" or limit.calendar == "lifetime":
        return []
    if limit.calendar is None:
        length = limit.window_seconds or 1
        return list(range(begins - begins % length, ends, length))
    result, at = [], begins
    while at < ends:
        start_us, end_us = window(at * SECOND_US, limit.calendar, limit.time_zone, limit.anchor)
        result.append(start_us // SECOND_US)
        at = end_us // SECOND_US
    return result
