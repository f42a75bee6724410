"""What rules find in the rows of the control plane: denials, spend, reservations, models, instances, revisions."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.core.zones import month_of
from controlplane.objects.prices.models import BrokenBound
from controlplane.operations.alerts.models import AlertEvent, Steadiness
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reports.models import MonthMetered
from controlplane.traffic.reservations.models import ReservationCount
from controlplane.traffic.usage.models import MeteredRow, UsageRow
from tests.controlplane.operations.alerts.conftest import evaluate, listed
from tests.factories import AlertRuleFactory, ModelPriceFactory, ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def now(store):
    """A time at which the store has been there for long."""
    now = timezone.now()
    Steadiness.objects.create(looked_at=now, steady_since=now - timedelta(minutes=5))
    return now


def title() -> str:
    return AlertEvent.objects.first().title


@pytest.mark.parametrize(("kind", "column", "allowed"), [("denials", "denied", 18), ("would_deny", "would_deny", 20)])
def test_a_share_of_the_requests_is_found_by_project(now, kind, column, allowed):
    """Of the last minutes, and of enough requests."""
    chat, few = ProjectFactory(slug="chat"), ProjectFactory(slug="few")
    AlertRuleFactory(kind=kind, thresholds=[10, 50], within_seconds=300)
    at = now.replace(second=0, microsecond=0)
    for project, minutes, counts in (
        (chat, 1, {"allowed": allowed, column: 2}),
        (chat, 7, {"allowed": 0, column: 100}),
        (few, 1, {"allowed": 1, column: 18}),
    ):
        UsageRowFactory(at=at - timedelta(minutes=minutes), project_id=project.pk, **counts)

    evaluate(now)

    assert listed() == [("raised", 10)]
    assert AlertEvent.objects.get().project == chat


def test_denials_are_over_when_requests_pass(now):
    chat = ProjectFactory(slug="chat")
    AlertRuleFactory(kind="denials", project=chat, thresholds=[10], within_seconds=300)
    row = UsageRowFactory(at=now.replace(second=0, microsecond=0), project_id=chat.pk, allowed=18, denied=2)

    evaluate(now)
    assert title() == "10 % of the requests of chat are denied"
    UsageRow.objects.filter(pk=row.pk).update(allowed=180)
    evaluate(now + timedelta(seconds=1))

    assert title() == "Fewer requests of chat are denied"
    assert listed() == [("raised", 10), ("resolved", 10)]


def test_what_is_spent_in_a_month_is_told_by_its_shares(now):
    """In the zone of the project, and of this project only."""
    chat = ProjectFactory(slug="chat", time_zone="Pacific/Auckland")
    month = month_of(now, chat.time_zone)
    AlertRuleFactory(kind="spend", project=chat, amount=10_000_000)
    spent = MonthMetered.objects.create(month=month, project_id=chat.pk, model="m", micros=5_000_000)
    MonthMetered.objects.create(month=month, project_id=ProjectFactory().pk, model="m", micros=100_000_000)

    evaluate(now)
    MonthMetered.objects.filter(pk=spent.pk).update(micros=9_000_000)
    for seconds in (1, 2):
        evaluate(now + timedelta(seconds=seconds))

    assert listed() == [("raised", 50), ("raised", 80)]
    assert title() == "chat spent 80 % of 10.00 USD"
    assert AlertEvent.objects.first().data["text"].startswith("9.00 USD of 10.00 USD in ")


def test_a_rule_of_all_projects_adds_up_what_they_spend(now):
    AlertRuleFactory(kind="spend", amount=10_000_000, thresholds=[100])
    for _ in range(2):
        MonthMetered.objects.create(month=month_of(now, "UTC"), project_id=ProjectFactory().pk, micros=5_000_000)

    evaluate(now)

    assert title() == "all projects spent 100 % of 10.00 USD"


def test_lost_reservations_are_told_of_by_project(now):
    """Of a project that is watched."""
    chat = ProjectFactory(slug="chat")
    AlertRuleFactory(kind="reservations_lost", project=chat)
    ReservationCount.objects.create(project_id=chat.pk, lost=2)
    ReservationCount.objects.create(project_id=ProjectFactory().pk, lost=1)

    evaluate(now)
    assert title() == "2 reservations of chat are lost"
    ReservationCount.objects.update(lost=0)
    evaluate(now + timedelta(seconds=1))

    assert title() == "No reservation of chat is lost"
    text = f"Since {now:%Y-%m-%d %H:%M} UTC: 2 reservations of chat are lost."
    assert AlertEvent.objects.get(state="resolved").data["text"] == text


def test_a_broken_bound_is_told_of_for_a_day(now):
    """Of a project that is watched, with what the provider adds."""
    chat, other = ProjectFactory(slug="chat"), ProjectFactory()
    AlertRuleFactory(kind="bound_broken", project=chat)
    fields = {"format": "openai-chat", "requests": 3, "added": 1_700}
    BrokenBound.objects.create(project_id=chat.pk, model="gpt-x", last_at=now, **fields)
    BrokenBound.objects.create(project_id=other.pk, model="gpt-y", last_at=now, **fields)

    evaluate(now)
    assert title() == "A bound of gpt-x (openai-chat) was broken"
    data = AlertEvent.objects.get().data
    assert "3 requests used more than was reserved" in data["text"]
    assert "adds up to 1,700 tokens" in data["text"]
    evaluate(now + timedelta(days=1, seconds=1))

    assert title() == "No bound of gpt-x (openai-chat) was broken lately"


def test_a_model_without_a_price_is_told_of(now):
    AlertRuleFactory(kind="unpriced")
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    MeteredRow.objects.create(period="day", at=day, project_id=ProjectFactory().pk, model="new-model", requests=3)

    evaluate(now)
    assert title() == "The model new-model has no price"
    ModelPriceFactory(pattern="new-*")
    evaluate(now + timedelta(seconds=1))

    assert title() == "The model new-model has a price"


def test_a_limit_that_counts_nothing_is_told_of(now, instance):
    AlertRuleFactory(kind="unmetered")
    instance("p-1", unmetered=["free/tokens"])

    evaluate(now)
    assert title() == "The limit free/tokens counts nothing"
    Instance.objects.update(unmetered=[])
    evaluate(now + timedelta(seconds=1))

    assert title() == "The limit free/tokens counts again"


def test_a_revision_that_is_not_live_everywhere_is_told_of(now, instance):
    """Once it is due. An instance that has just started is still reading it."""
    AlertRuleFactory(kind="rollout_stuck", within_seconds=600)
    Revision.objects.create(number=7, published_at=now - timedelta(seconds=601))
    Revision.objects.create(number=8, published_at=now - timedelta(seconds=590))
    old = instance("p-1", revision=6, started_at=now - timedelta(hours=1))
    instance("p-2", revision=7, started_at=now - timedelta(hours=1))
    instance("p-3", revision=0, started_at=now - timedelta(seconds=5))

    evaluate(now)
    assert title() == "Revision 7 is not live on 1 instance"
    Instance.objects.filter(pk=old.pk).update(revision=7)
    evaluate(now + timedelta(seconds=1))

    assert title() == "Every instance has the revision that is due"
