"""Whoever looks at a budget reads money in its currency, and no millionths. Files and REST keep the integers."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.projects.actions import issue_token
from controlplane.traffic.reports import usage_render, usage_report
from enforcement import Limiter
from tests.controlplane.pages import text_of
from tests.factories import LimitFactory, OverrideFactory, ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def budget(store):
    return LimitFactory(name="usd", policy__slug="budget", unit="micros", quota=50_000_000)


def test_the_counters_of_a_token(as_ann, api, budget, actor, store):
    with change(actor=actor) as tx:
        tx.created(budget.policy)
        tx.created(project := ProjectFactory())
        token, secret = issue_token(tx, project=project, name="ci", policy=budget.policy)
    with Limiter(store.url, timeout=2.0) as limiter:
        assert limiter.check(secret, costs={"micros": 12_340_000}).allowed

    page = text_of(as_ann.get(f"/admin/projects/token/{token.pk}/counters/"))
    (counter,) = api("GET", f"counters?token={token.pk}").json()["results"]

    assert "12.34 USD of 50.00 USD (24 %) 37.66 USD" in page
    assert (counter["used"], counter["quota"]) == (12_340_000, 50_000_000)


def test_usage_and_its_report(as_ann, budget):
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    names = {"policy_id": budget.policy.pk, "limit_name": "usd", "unit": "micros", "allowed": 3, "denied": 1}
    UsageRowFactory(period="day", at=today, cost=12_340_000, **names)
    UsageRowFactory(period="day", at=today - timedelta(days=1), cost=-1_850_000, **names)

    listed = text_of(as_ann.get("/admin/usage/usagerow/?period=day&of=limits"))
    file = as_ann.get("/admin/usage/usagerow/export.csv?period=day&of=limits").getvalue().decode()
    page = usage_render.as_html(usage_report.build(today.date(), today))

    assert ("12.34 USD" in listed, "-1.85 USD" in listed) == (True, True)
    assert "micros,3,1,0,12340000" in file
    assert '<td class="number">12.34 USD</td>' in page


def test_an_override(as_ann, budget):
    OverrideFactory(limit=budget, quota=75_500_000)

    assert "75.50 USD instead of 50.00 USD" in text_of(as_ann.get("/admin/policies/override/"))
