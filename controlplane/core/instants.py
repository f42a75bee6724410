"""Conversion of instants from dates, as Python and SQL hold them, to integers, as the store holds them."""

from datetime import datetime, timedelta

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def microseconds(instant: datetime | None) -> int | None:
    """
    Return the microseconds from the epoch to *instant*, or None for None.

    The result is an integer, because a float is not exact to the microsecond.
    """
    if instant is None:
        return None
    return (instant - EPOCH) // timedelta(microseconds=1)
