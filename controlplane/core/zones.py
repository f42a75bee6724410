"""Time zones by their names in the IANA database."""

from datetime import UTC, date, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from django.core.exceptions import ValidationError


def check_time_zone(name: str) -> None:
    """Raise ValidationError for a name that the database of time zones does not have."""
    if name not in _names():
        raise ValidationError(f"Must be a time zone such as Europe/Berlin or UTC, got {name!r}.", "rule")


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    return frozenset(available_timezones())


def month_of(at: datetime, zone: str) -> date:
    """Return the first day of the month in which *at* lies in this zone."""
    return at.astimezone(ZoneInfo(zone)).date().replace(day=1)


def start_of_month(month: date, zone: str) -> datetime:
    """Return when a month begins in this zone, as an instant in UTC."""
    return datetime(month.year, month.month, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def next_month(month: date) -> date:
    """Return the first day of the month after this one."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)
