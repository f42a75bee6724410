"""When the rest of a quota will be used up, from what was used in the same hours of the weeks before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from controlplane.core.periods import periods_like, start_of

HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)
HISTORY = 4 * WEEK
# A limit without an end is not foretold further than this.
FARTHEST = timedelta(days=90)
HOURS_OF_WEEK, HOURS_OF_DAY, PACE = (
    "the same hours of the last weeks",
    "the same hours of the last days",
    "the present pace",
)


@dataclass(frozen=True, slots=True)
class Forecast:
    """
    Whether a limit runs out.

    Attributes:
        at: When nothing will be left. None: not before it resets.
        basis: What it is foretold from, in words. Empty if nothing is left already.
        is_vague: Whether the instant is right to a day only, as it is a week away or more.
    """

    at: datetime | None
    basis: str = ""
    is_vague: bool = False


def foretell(
    history: Mapping[datetime, int],
    *,
    used: int,
    remaining: int,
    since: datetime,
    now: datetime,
    until: datetime | None,
) -> Forecast:
    """
    Return when *remaining* permits will be used up.

    Args:
        history: Permits by the start of each hour of the last weeks. An hour that is left out has none.
        used: Permits that are used since *since*, when the window began.
        until: When the limit resets. None: never.
    """
    if remaining <= 0:
        return Forecast(now)
    end = min(until or now + FARTHEST, now + FARTHEST)
    first = min(history, default=now)
    if now - first >= WEEK:
        step, most, basis = WEEK, HISTORY // WEEK, HOURS_OF_WEEK
    elif now - first >= timedelta(days=1):
        step, most, basis = timedelta(days=1), WEEK.days, HOURS_OF_DAY
    else:
        at = _by_pace(used, remaining, since, now)
        return Forecast(at if at and at < end else None, PACE)
    left, present = float(remaining), start_of("hour", now)
    for start, share in _hours(now, end):
        like = periods_like(start, step, first, present, most)
        use = share * sum(history.get(hour, 0) for hour in like) / max(1, len(like))
        if use >= left > 0:
            at = max(start, now) + HOUR * share * (left / use)
            return Forecast(at, basis, at - now >= WEEK)
        left -= use
    return Forecast(None, basis)


def _by_pace(used: int, remaining: int, since: datetime, now: datetime) -> datetime | None:
    elapsed = (now - since).total_seconds()
    if used <= 0 or elapsed <= 0:
        return None
    seconds = remaining * elapsed / used
    return now + timedelta(seconds=seconds) if seconds < FARTHEST.total_seconds() else None


def _hours(now: datetime, end: datetime) -> Iterator[tuple[datetime, float]]:
    """Yield the start of each hour from *now* to *end*, and the share of it that lies between them."""
    start = now.replace(minute=0, second=0, microsecond=0)
    while start < end:
        yield start, (min(start + HOUR, end) - max(start, now)) / HOUR
        start += HOUR
