"""Windows of the calendar: real months, anchors, and clocks that are set forward and back."""

from datetime import datetime

import pytest

from enforcement.model.calendars import boundaries, window


def us(text):
    """Return an instant in microseconds."""
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("calendar", "zone", "anchor", "now", "start", "end"),
    [
        ("month", "UTC", 31, "2026-02-15T12:00Z", "2026-01-31T00:00Z", "2026-02-28T00:00Z"),
        ("month", "UTC", 31, "2028-02-29T12:00Z", "2028-02-29T00:00Z", "2028-03-31T00:00Z"),
        ("month", "Asia/Tokyo", None, "2026-07-31T14:59Z", "2026-06-30T15:00Z", "2026-07-31T15:00Z"),
        ("week", "UTC", 7, "2026-01-04T15:40Z", "2026-01-04T00:00Z", "2026-01-11T00:00Z"),
        ("week", "UTC", None, "2026-01-04T15:40Z", "2025-12-29T00:00Z", "2026-01-05T00:00Z"),
        ("day", "UTC", "09:00", "2026-01-04T05:40Z", "2026-01-03T09:00Z", "2026-01-04T09:00Z"),
        ("day", "America/New_York", None, "2026-11-01T06:30Z", "2026-11-01T04:00Z", "2026-11-02T05:00Z"),
        ("day", "America/New_York", None, "2026-03-08T08:30Z", "2026-03-08T05:00Z", "2026-03-09T04:00Z"),
        ("hour", "America/New_York", None, "2026-11-01T05:30Z", "2026-11-01T05:00Z", "2026-11-01T06:00Z"),
        ("hour", "America/New_York", None, "2026-11-01T06:30Z", "2026-11-01T06:00Z", "2026-11-01T07:00Z"),
        ("hour", "Australia/Lord_Howe", None, "2026-04-04T15:10Z", "2026-04-04T15:00Z", "2026-04-04T15:30Z"),
        ("minute", "Asia/Kathmandu", None, "2026-04-04T15:10:59Z", "2026-04-04T15:10Z", "2026-04-04T15:11Z"),
        ("year", "UTC", "02-29", "2026-02-28T15:40Z", "2026-02-28T00:00Z", "2027-02-28T00:00Z"),
    ],
)
def test_a_window_is_what_the_wall_says(calendar, zone, anchor, now, start, end):
    """Anchors are clamped, a day may last 23 or 25 hours, and the hour that autumn repeats is two windows."""
    assert window(us(now), calendar, zone, anchor) == (us(start), us(end))


def test_three_windows_in_a_row_leave_no_gap():
    """The boundaries around February are those of January and March."""
    february = window(us("2026-02-10T00:00Z"), "month")
    expected = tuple(us(f"2026-0{month}-01T00:00Z") for month in (1, 2, 3, 4))

    assert boundaries(february, "month", "UTC", None) == expected
