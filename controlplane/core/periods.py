"""The counts of usage, the periods in which they are summed up, and how long each is kept."""

from datetime import date, datetime, timedelta

DECISIONS = ("allowed", "denied", "would_deny")
COUNTS = (*DECISIONS, "cost")
PERIODS = ("minute", "hour", "day")
KEPT = {"minute": timedelta(hours=48), "hour": timedelta(days=90), "day": timedelta(days=730)}


def start_of(period: str, at: datetime) -> datetime:
    """Return when the minute, hour or day of *at*, a time in UTC, began."""
    minute = at.replace(second=0, microsecond=0)
    if period == "minute":
        return minute
    return minute.replace(minute=0) if period == "hour" else minute.replace(hour=0, minute=0)


def periods_like[At: (date, datetime)](at: At, step: timedelta, first: At, end: At, most: int) -> list[At]:
    """
    Return the starts of past periods that are like the one at *at*, the last first. A forecast is their mean.

    Args:
        step: From one like period to the next, such as a week.
        first: Start of the first period with a history.
        end: Start of the first period that is not over.
        most: Most periods to return.
    """
    past = at - step
    while past >= end:
        past -= step
    starts: list[At] = []
    while past >= first and len(starts) < most:
        starts.append(past)
        past -= step
    return starts
