"""The quick ends are meant by the clock of whoever presses them."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from controlplane.web.kit.ends import in_words, quick_end

BERLIN, TOKYO = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "now", "zone", "expected"),
    [
        ("hour", "2026-11-24 23:30", BERLIN, "2026-11-25 00:30"),
        ("today", "2026-11-24 12:00", BERLIN, "2026-11-24 23:00"),
        # It is tomorrow already there.
        ("today", "2026-11-24 23:30", BERLIN, "2026-11-25 23:00"),
        ("today", "2026-11-24 16:00", TOKYO, "2026-11-25 15:00"),
        # The clock was set back by an hour on this day.
        ("today", "2026-10-25 00:30", BERLIN, "2026-10-25 23:00"),
        ("friday", "2026-11-24 12:00", BERLIN, "2026-11-27 17:00"),
        ("friday", "2026-11-27 16:59", BERLIN, "2026-11-27 17:00"),
        ("friday", "2026-11-27 17:00", BERLIN, "2026-12-04 17:00"),
        ("friday", "2026-11-28 12:00", BERLIN, "2026-12-04 17:00"),
        ("month", "2026-11-24 12:00", BERLIN, "2026-11-30 23:00"),
        ("month", "2026-12-31 23:30", BERLIN, "2027-01-31 23:00"),
        ("month", "2026-12-31 22:30", BERLIN, "2026-12-31 23:00"),
        ("month", "2028-02-29 12:00", ZoneInfo("UTC"), "2028-03-01 00:00"),
    ],
)
def test_the_next_end_of_a_name(name, now, zone, expected):
    """Across days, years, and changes of the clock."""
    assert quick_end(name, at(now), zone) == at(expected)


@pytest.mark.parametrize(
    ("end", "zone", "expected"),
    [
        ("2026-11-27 17:00", BERLIN, "Fri 27 Nov 2026, 18:00 Europe/Berlin (Fri 17:00 UTC), in 3 days"),
        ("2026-11-25 23:30", ZoneInfo("UTC"), "Wed 25 Nov 2026, 23:30 UTC, in 35 h"),
        ("2026-11-24 12:30", ZoneInfo("UTC"), "Tue 24 Nov 2026, 12:30 UTC, in 30 min"),
    ],
)
def test_an_end_in_words(end, zone, expected):
    """With UTC beside, which others compare."""
    assert in_words(at(end), at("2026-11-24 12:00"), zone) == expected
