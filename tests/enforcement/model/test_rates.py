"""Limits in the notation of other libraries."""

import re

import pytest

from enforcement import InvalidLimit, Limit


@pytest.mark.parametrize(
    ("text", "algorithm", "quota", "window", "calendar"),
    [
        ("100/minute", "sliding_window", 100, 60, None),
        ("10 per 2 seconds", "sliding_window", 10, 2, None),
        ("1000/day", "sliding_window", 1000, 86_400, None),
        ("5/2 hours", "sliding_window", 5, 7_200, None),
        ("7 per week", "sliding_window", 7, 604_800, None),
        ("5/month", "fixed_window", 5, None, "month"),
        ("5/s", "sliding_window", 5, 1, None),
        ("100/5m", "sliding_window", 100, 300, None),
        ("10/hrs", "sliding_window", 10, 3_600, None),
        ("10/d", "sliding_window", 10, 86_400, None),
        ("10per minute", "sliding_window", 10, 60, None),
        ("1 / Second", "sliding_window", 1, 1, None),
        ("1 per 3 hour", "sliding_window", 1, 10_800, None),
        ("400/10m", "sliding_window", 400, 600, None),
        ("3/sec", "sliding_window", 3, 1, None),
        ("0/m", "sliding_window", 0, 60, None),
    ],
)
def test_the_notation_of_other_libraries_is_understood(text, algorithm, quota, window, calendar):
    """A month is a month of the calendar; everything else slides."""
    limit = Limit.parse(text)
    assert (limit.algorithm, limit.quota, limit.window_seconds, limit.calendar) == (algorithm, quota, window, calendar)


def test_several_limits_may_stand_in_one_text():
    """As limits, slowapi and flask-limiter write them; one part that is none spoils all."""
    assert [limit.name for limit in Limit.parse_many("10/minute; 5 per hour|1/day,7/s")] == [
        "10-per-minute",
        "5-per-hour",
        "1-per-day",
        "7-per-second",
    ]
    with pytest.raises(InvalidLimit, match="got ' '"):
        Limit.parse_many("10/minute; ")


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("$5.00/month", 5_000_000),
        ("5 USD/month", 5_000_000),
        ("0.25 per day", 250_000),
        ("\N{EURO SIGN}7/month", 7_000_000),
    ],
)
def test_an_amount_of_money_names_the_limit_to_write(text, quota):
    """A rate counts requests, so an amount is refused with the quota in micros."""
    with pytest.raises(InvalidLimit, match=rf'For money, write Limit\(quota={quota}, unit="micros", \.\.\.\), got '):
        Limit.parse(text)


@pytest.mark.parametrize("text", ["5 GET/minute", "10 API per decade", "10/minute; 0.5/day"])
def test_what_names_no_currency_is_no_amount(text):
    """Whoever wrote it is not sent to money."""
    with pytest.raises(InvalidLimit, match='Must be like "100/minute"'):
        Limit.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "100", "100/fortnight", "-1/minute", "1.5/minute", "10/3 months", "10/ms", "10/ss", "1/s;2/m", None, 5],
)
def test_other_notations_are_refused(text):
    """Never a limit that means something else."""
    with pytest.raises(InvalidLimit):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("100/10", 'For seconds, write "100/10s"'),
        ("100/", 'For seconds, write "100/s"'),
        ("10/2 months", 'Write "10/60 days"'),
        ("10 per 3 month", 'Write "10/90 days"'),
        ("10/2 years", 'Write "10/366 days"'),
        ("10/minute; 5/hour", "Limit.parse_many() reads several"),
    ],
)
def test_a_notation_that_others_read_is_refused_with_what_to_write(text, write):
    """What the sentence says can be read."""
    with pytest.raises(InvalidLimit, match=re.escape(write)):
        Limit.parse(text)
    if '"' in write:
        assert Limit.parse(write.split('"')[1]).quota in (10, 100)
