"""The days of a statement, in the zone of the project, and what is foretold of the rest of the month."""

from datetime import UTC, date, datetime, timedelta

import pytest

from controlplane.traffic.reports import days, report
from controlplane.traffic.reports.days import chart, days_of, lines_of
from controlplane.traffic.reports.report import Scope
from controlplane.traffic.stream.batches import Row
from controlplane.traffic.usage import rollup
from tests.controlplane.traffic.reports.conftest import NOW
from tests.factories import LimitFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db

OCTOBER, NOVEMBER = date(2026, 10, 1), date(2026, 11, 1)
PAGE = "/admin/statements/monthrow/"


@pytest.fixture
def berlin():
    return ProjectFactory(slug="chat", time_zone="Europe/Berlin")


def count(project, at, allowed, *, token="", limit="", now=NOW):
    policy, _, name = limit.partition("/")
    rollup.add([Row(at, (project.pk, token, policy, name, "requests"), (allowed, 0, 0, allowed))], now)


def scope(project, month=NOVEMBER, **fields):
    return Scope(month, (project.pk,), project.time_zone, **fields)


def test_days_begin_at_midnight_of_the_zone_and_add_up_to_the_month(berlin):
    """Also the day of 25 hours on which summer time ends, and the last hour of the month."""
    times = ("24T21:30", "24T22:30", "25T22:30", "25T23:30", "31T22:30", "31T23:30")
    for number, time in enumerate(times):
        count(berlin, datetime.fromisoformat(f"2026-10-{time}+00:00"), 2**number)

    found = days_of(scope(berlin, OCTOBER), NOW)

    used = {one.day.day: one.counts["allowed"] for one in found.days if one.counts}
    assert used == {24: 1, 25: 2 + 4, 26: 8, 31: 16}
    assert (found.zone, len(found.days), found.rest) == ("Europe/Berlin", 31, None)
    assert sum(used.values()) == report.summary(scope(berlin, OCTOBER)).total.counts["allowed"]


def test_the_rest_of_the_month_is_foretold_from_the_same_days_of_two_weeks(berlin):
    """Of today, the part that is left. Days before two weeks ago do not count."""
    count(berlin, datetime(2026, 11, 5, 10, tzinfo=UTC), 9_000)
    for day in range(12, 26):
        count(berlin, datetime(2026, 11, day, 10, tzinfo=UTC), 100 if day % 7 != 0 else 30)  # 14 and 21 are Saturdays
    count(berlin, datetime(2026, 11, 26, 10, tzinfo=UTC), 40)

    found = days_of(scope(berlin), NOW)

    expected = [(one.day.day, one.rest["allowed"], one.has_begun) for one in found.days if one.rest]
    assert expected == [(26, 46, True), (27, 100, False), (28, 30, False), (29, 100, False), (30, 100, False)]
    assert (found.rest["allowed"], found.basis) == (376, 14)
    assert [line.name for line in lines_of(found)][-1] == "2026-11-26"


def test_a_short_history_is_averaged_and_none_foretells_nothing(berlin):
    """Two days say nothing of weekdays, and the first day nothing of the next one."""
    count(berlin, datetime(2026, 11, 26, 10, tzinfo=UTC), 40)
    assert days_of(scope(berlin), NOW).rest is None

    for day, allowed in ((24, 100), (25, 300)):
        count(berlin, datetime(2026, 11, day, 10, tzinfo=UTC), allowed)
    found = days_of(scope(berlin), NOW)

    assert [one.rest["allowed"] for one in found.days[26:]] == [200] * 4
    assert found.basis == 2


def test_a_token_a_label_and_a_policy_have_days_of_their_own(berlin):
    """As their totals."""
    limit = LimitFactory(name="per-day")
    token = TokenFactory(project=berlin, labels={"team": "red"})
    at = datetime(2026, 11, 20, 9, tzinfo=UTC)
    count(berlin, at, 3, token=token.pk)
    count(berlin, at, 2, token=token.pk, limit=f"{limit.policy_id}/per-day")
    count(berlin, at, 10, token=TokenFactory(project=berlin).pk)

    for of, allowed in (
        (scope(berlin), 13),
        (scope(berlin, token=token), 3),
        (scope(berlin, label=("team", "red")), 3),
        (scope(berlin, policy=limit.policy), 2),
    ):
        assert days_of(of, NOW).days[19].counts["allowed"] == allowed
        assert report.summary(of).total.counts["allowed"] == allowed


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Europe/Berlin"])
def test_where_hours_do_not_make_days_they_are_those_of_utc(zone, monkeypatch):
    """A zone with half an hour, and a month of too many tokens. The page says so."""
    monkeypatch.setattr(days, "MOST_TOKENS_BY_HOUR", 0)
    project = ProjectFactory(time_zone=zone)
    count(project, datetime(2026, 11, 20, 23, tzinfo=UTC), 5)

    found = days_of(scope(project), NOW)

    assert (found.zone, found.days[19].counts["allowed"]) == ("UTC", 5)


def test_a_table_of_days_in_utc_says_why_it_differs_from_the_total(as_ann):
    """And one without days says how long they are kept."""
    project = ProjectFactory(slug="far", time_zone="Asia/Kolkata")
    count(project, datetime(2026, 11, 20, 23, tzinfo=UTC), 5)
    query = {"project": "far", "group": "day"}

    page = as_ann.get(PAGE, {**query, "month": "2026-11"}).content.decode()
    old = as_ann.get(PAGE, {**query, "month": "2020-01"}).content.decode()

    assert "because hours do not add up to days in Asia/Kolkata" in page
    assert "Days are kept for two years" in old


def test_days_that_are_not_kept_or_of_very_many_tokens_are_not_shown(berlin, monkeypatch):
    """The page is fast, and shows nothing that is not whole."""
    assert days_of(scope(berlin, date(2024, 10, 1)), NOW) is None
    monkeypatch.setattr(days, "MOST_TOKENS", 1)
    for _ in range(2):
        count(berlin, NOW - timedelta(hours=2), 1, token=TokenFactory(project=berlin).pk)

    assert days_of(scope(berlin), NOW) is None


def test_the_chart_stacks_the_forecast_on_what_was_counted(berlin):
    """Its axis is round."""
    for day in (24, 25):
        count(berlin, datetime(2026, 11, day, 10, tzinfo=UTC), 100)
    count(berlin, datetime(2026, 11, 26, 10, tzinfo=UTC), 40)

    drawn = chart(days_of(scope(berlin), NOW), "allowed")

    today, tomorrow = drawn["bars"][25], drawn["bars"][26]
    assert [line["value"] for line in drawn["grid"]] == [0, 30, 60, 90, 120]
    assert (today["y"], today["height"], today["above_y"], today["above"]) == (86.7, 43.3, 36.9, 49.8)
    assert (tomorrow["height"], tomorrow["above_y"], tomorrow["above"]) == (0.0, 21.7, 108.3)


def test_the_page_shows_the_days_and_files_group_by_them(as_ann, berlin):
    """A day of a month that is over has no forecast."""
    count(berlin, datetime(2026, 10, 20, 23, tzinfo=UTC), 5, now=datetime(2026, 10, 21, tzinfo=UTC))
    query = {"project": "chat", "month": "2026-10", "group": "day"}

    page = as_ann.get(PAGE, query).content.decode()
    lines = as_ann.get(PAGE, {**query, "format": "json"}).json()["by_day"]

    assert "Requests by day" in page
    assert "Days in Europe/Berlin" in page
    assert "Forecast" not in page
    used = [(line["name"], line["zone"], line["allowed"]) for line in lines if "allowed" in line]
    assert used == [("2026-10-21", "Europe/Berlin", 5)]
