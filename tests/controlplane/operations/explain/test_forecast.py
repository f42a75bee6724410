"""A forecast takes the mean of the same hours of the last weeks, and says what it is made from."""

from datetime import UTC, datetime, timedelta

import pytest

from controlplane.operations.explain.forecast import HOURS_OF_DAY, HOURS_OF_WEEK, PACE, foretell

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)  # a Wednesday
MONTH = datetime(2026, 12, 1, tzinfo=UTC)


def hours(days, permits):
    """A history of so many days up to noon: ``permits(start)`` of each hour."""
    starts = [NOON - timedelta(hours=back) for back in range(1, days * 24 + 1)]
    return {start: permits(start) for start in starts}


def forecast_of(history, **changed):
    given = {"used": 90, "remaining": 10, "since": NOON - timedelta(hours=9), "now": NOON, "until": MONTH}
    return foretell(history, **(given | changed))


def test_steady_use_runs_out_when_the_rest_is_used():
    """Ten permits an hour use 25 in two and a half."""
    found = forecast_of(hours(28, lambda start: 10), remaining=25)

    assert (found.at, found.basis) == (NOON + timedelta(hours=2, minutes=30), HOURS_OF_WEEK)


def test_nights_and_weekends_are_quiet_again():
    """Office hours only: what is left on Wednesday at noon lasts until Thursday at ten."""
    office = hours(28, lambda start: 10 if start.weekday() < 5 and 9 <= start.hour < 17 else 0)

    assert forecast_of(office, remaining=60).at == datetime(2026, 11, 26, 10, 0, tzinfo=UTC)


def test_a_limit_that_resets_first_does_not_run_out():
    """Three hours are left and use thirty of forty."""
    assert forecast_of(hours(28, lambda start: 10), remaining=40, until=NOON + timedelta(hours=3)).at is None


def test_with_less_than_a_week_the_hours_of_the_day_count():
    """And it says so."""
    history = hours(3, lambda start: 12 if start.hour == 13 else 0)

    found = forecast_of(history, remaining=6)

    assert (found.at, found.basis) == (NOON + timedelta(hours=1, minutes=30), HOURS_OF_DAY)


def test_with_less_than_a_day_the_pace_counts():
    """Ninety in nine hours: ten more take an hour."""
    found = forecast_of({}, remaining=10)

    assert (found.at, found.basis) == (NOON + timedelta(hours=1), PACE)


def test_an_instant_a_week_away_is_vague():
    """It is right to a day only."""
    found = forecast_of(hours(28, lambda start: 1), remaining=200, until=None)

    assert found.is_vague
    assert found.at == NOON + timedelta(hours=200)


@pytest.mark.parametrize("remaining", [0, -5])
def test_nothing_left_has_run_out(remaining):
    """A debt, too."""
    assert forecast_of({}, remaining=remaining).at == NOON


@pytest.mark.parametrize("history", [{}, hours(28, lambda start: 0)])
def test_without_use_nothing_runs_out(history):
    """Neither by the pace nor by the hours, and without an end, too."""
    assert forecast_of(history, used=0, until=None).at is None
