"""The periods in which usage is counted, and how long each is kept."""

from datetime import datetime, timedelta

PERIODS = ("minute", "hour", "day")
KEPT = {"minute": timedelta(hours=48), "hour": timedelta(days=90), "day": timedelta(days=730)}


def start_of(period: str, at: datetime) -> datetime:
    """Return when the minute, hour or day of *at*, a time in UTC, began."""
    minute = at.replace(second=0, microsecond=0)
    if period == "minute":
        return minute
    return minute.replace(minute=0) if period == "hour" else minute.replace(hour=0, minute=0)
