"""Instants as the store holds them, which are integers, and as people read them."""

from datetime import UTC, datetime

from django.utils import timezone

from enforcement.model.instants import to_us

# Instants are published in microseconds, and enforcers read integers up to 2**53.
LATEST = datetime(2255, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime | None) -> int | None:
    """Return the microseconds from the epoch to *instant*, or None for None."""
    return None if instant is None else to_us(instant)


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
