"""Conversion of instants from dates, as Python and SQL hold them, to integers, as the store holds them."""

from datetime import UTC, datetime

from enforcement.model.instants import to_us

# Instants are published in microseconds, and enforcers read integers up to 2**53.
LATEST = datetime(2255, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime | None) -> int | None:
    """Return the microseconds from the epoch to *instant*, or None for None."""
    return None if instant is None else to_us(instant)
