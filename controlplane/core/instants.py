"""The instants that SQL and Python hold as dates, as the integers that the store holds."""

from datetime import datetime, timedelta

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def microseconds(instant: datetime | None) -> int | None:
    """Return microseconds since the epoch, in whole numbers: a float would lose some."""
    if instant is None:
        return None
    return (instant - EPOCH) // timedelta(microseconds=1)
