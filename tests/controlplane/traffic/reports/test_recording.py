"""Each minute of usage is in one month: that of the project's time zone, or a correction of it."""

from datetime import UTC, date, datetime, timedelta
from importlib import import_module

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.releases.publishing import publisher
from controlplane.traffic.reports.models import MonthRow
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.models import UsageRow
from controlplane.traffic.usage.months import closes_at
from enforcement import Limiter
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def months():
    return sorted(MonthRow.objects.values_list("month", "correction", "allowed"))


@pytest.mark.parametrize(
    ("zone", "at", "month"),
    [
        ("UTC", "2026-10-31T23:30", date(2026, 10, 1)),
        ("Europe/Berlin", "2026-10-31T23:30", date(2026, 11, 1)),
        ("America/New_York", "2026-11-01T03:59", date(2026, 10, 1)),
        ("Asia/Kolkata", "2026-10-31T18:29", date(2026, 10, 1)),
        ("Asia/Kolkata", "2026-10-31T18:30", date(2026, 11, 1)),
    ],
)
def test_a_month_begins_at_midnight_in_the_zone_of_the_project(use, zone, at, month):
    """Also in a zone whose midnight is no full hour in UTC."""
    use(
        ProjectFactory(time_zone=zone),
        datetime.fromisoformat(at).replace(tzinfo=UTC),
        allowed=1,
        now=datetime(2026, 11, 1, 12, tzinfo=UTC),
    )

    assert months() == [(month, "", 1)]


def test_a_zone_that_nobody_knows_is_refused():
    """At the model, and so at each door."""
    with pytest.raises(ValidationError, match="Must be a time zone such as Europe/Berlin"):
        ProjectFactory(time_zone="Europe/Atlantis")


def test_a_month_is_closed_three_days_after_its_end(use):
    """What arrives later is a row of its own, and what was there stays as it is."""
    project = ProjectFactory(time_zone="Europe/Berlin")
    october, closed = datetime(2026, 10, 15, tzinfo=UTC), closes_at(date(2026, 10, 1), "Europe/Berlin")
    assert closed == datetime(2026, 11, 3, 23, tzinfo=UTC)

    use(project, october, allowed=5, now=closed - timedelta(seconds=1))
    use(project, october, allowed=2, now=closed)
    use(project, october, allowed=1, now=closed + timedelta(hours=1))
    use(project, october, allowed=4, now=closed + timedelta(days=2))

    month = date(2026, 10, 1)
    assert months() == [(month, "", 5), (month, "2026-11-03", 2), (month, "2026-11-04", 1), (month, "2026-11-05", 4)]


def test_a_statement_equals_what_enforcement_counted(store):
    """From real decisions over the stream to the sums: nothing is lost, and nothing is counted twice."""
    policy = PolicyFactory(slug="free")
    for unit, quota in (("requests", 7), ("tokens", 100)):
        LimitFactory(policy=policy, name=unit, unit=unit, quota=quota, window_seconds=None, calendar="lifetime")
    project = ProjectFactory(time_zone="Asia/Kolkata")
    tokens = [TokenFactory(project=project, policy=policy) for _ in range(2)]
    publisher.publish_all()
    with Limiter(store.url, timeout=1.0) as limiter:
        decisions = [
            limiter.check(token.secret, costs={"requests": 1, "tokens": cost})
            for token in tokens
            for cost in (30, 20, 60, 10, 0, 5, 0, 0, 0, 0)
        ]
        left = [
            {state.name: state.remaining for state in limiter.check(token.secret, costs=0).limits} for token in tokens
        ]
    drain(timezone.now())
    drain(timezone.now())

    allowed = sum(decision.allowed for decision in decisions)
    assert 0 < allowed < len(decisions)
    total = MonthRow.objects.filter(limit_name="", unit="requests")
    assert sum(total.values_list("denied", flat=True)) == len(decisions) - allowed
    charged = {
        name: sum(MonthRow.objects.filter(limit_name=name).values_list("cost", flat=True))
        for name in ("requests", "tokens")
    }
    assert charged == {
        "requests": sum(7 - one["requests"] for one in left),
        "tokens": sum(100 - one["tokens"] for one in left),
    }
    for name in ("allowed", "denied", "would_deny", "cost"):
        by_day = UsageRow.objects.filter(period="day").values_list(name, flat=True)
        assert sum(MonthRow.objects.values_list(name, flat=True)) == sum(by_day)


def test_the_months_of_an_earlier_release_are_the_sums_of_its_days():
    """After the upgrade, a statement of them is there."""
    key = {"period": "day", "project_id": "proj_1", "token_id": "tok_1", "unit": "requests"}
    for day in (1, 30):
        UsageRow.objects.create(at=datetime(2026, 9, day, tzinfo=UTC), **key, allowed=day)

    import_module("controlplane.traffic.reports.migrations.0001_initial").fill(apps, None)

    assert months() == [(date(2026, 9, 1), "", 31)]
