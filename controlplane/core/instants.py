"""Instants as the store holds them, which are integers, and as people read them."""

from datetime import UTC, datetime, timedelta

from django.db import connection
from django.utils import timezone

from enforcement.model.instants import to_us

# Instants are published in microseconds, and enforcers read integers up to 2**53.
LATEST = datetime(2255, 1, 1, tzinfo=UTC)
# A reply of the store is so much older at most when it is added to our clock.
APART = timedelta(seconds=3)


def microseconds(instant: datetime | None) -> int | None:
    """Return the microseconds from the epoch to *instant*, or None for None."""
    return None if instant is None else to_us(instant)


def no_later_than_the_database(now: datetime) -> datetime:
    """
    Return the time, or that of PostgreSQL if it is earlier.

    What is deleted by a clock that is ahead is lost, and two hosts are seldom ahead at the same time.
    """
    if connection.vendor != "postgresql":
        return now
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return min(now, *cursor.fetchone())


def whole(at: datetime) -> datetime:
    """
    Return the minute that an instant is within 3 seconds of, or else the instant.

    The end of a window is known as the time left until it by the clock of the store, so by ours midnight is 23:59.
    """
    minute = (at + timedelta(seconds=30)).replace(second=0, microsecond=0)
    return minute if abs(at - minute) <= APART else at


def exact(at: datetime, *, seconds: bool = False) -> str:
    """
    Return an instant in the present zone with UTC beside, such as "2026-11-25 16:04 Europe/Berlin (15:04 UTC)".

    The date in UTC is left out if it is the same.
    """
    form = "%H:%M:%S" if seconds else "%H:%M"
    local, utc = timezone.localtime(at), at.astimezone(UTC)
    shown = local.strftime(f"%Y-%m-%d {form}")
    if local.utcoffset() == utc.utcoffset():
        return f"{shown} UTC"
    beside = utc.strftime(form if utc.date() == local.date() else f"%Y-%m-%d {form}")
    return f"{shown} {timezone.get_current_timezone_name()} ({beside} UTC)"
