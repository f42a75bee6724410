"""What rules find: in the store, in its absence, and among the rows of the control plane."""

import json
from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from controlplane.objects.projects.models import Token
from controlplane.operations.alerts import run
from controlplane.operations.alerts.models import AlertEvent, Steadiness
from controlplane.operations.webhooks import deliveries
from tests.controlplane.operations.alerts.conftest import evaluate, listed
from tests.factories import (
    AlertRuleFactory,
    LimitFactory,
    ManagementKeyFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UsageRowFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_usage_of_a_token_is_found_at_each_threshold(issue, use):
    """Its rule names the limit, and what the event tells is of its counter."""
    token, secret = issue({"quota": 10}, {"name": "wide", "quota": 1_000})
    AlertRuleFactory(limit="free/per-day")

    for times in (4, 1, 3, 2):
        use(secret, times)
        evaluate(timezone.now())

    assert listed() == [("raised", 50), ("raised", 80), ("raised", 100)]
    event = AlertEvent.objects.first()
    assert event.title == "free/per-day of kestrel (chat) has reached 100 %"
    assert event.project == token.project
    told = (event.data["quota"], event.data["used"], event.data["remaining"], event.data["text"])
    assert told == (10, 10, 0, "10 of 10 are used.")


@pytest.fixture
def recorded(issue, use):
    """A quota of 100 permits of which 60 are used, and 5 in each of the like hours of a week ago."""

    def make(hour):
        token, secret = issue({"quota": 100, "window_seconds": None, "calendar": "lifetime"})
        use(secret, 60)
        ids = {"project_id": token.project_id, "token_id": token.pk, "policy_id": token.policy_id}
        for hours in range(-1, 25):
            at = hour + timedelta(hours=hours) - timedelta(days=7)
            UsageRowFactory(period="hour", at=at, limit_name="per-day", cost=5, **ids)
        return token

    return make


def test_what_will_be_used_up_is_told_of_once(recorded):
    """
    40 are left and 5 an hour are used, so they end in 8 hours.

    A rule for the next six hours tells nothing of it, one for the next day tells it once, and again when it is over.
    """
    now = timezone.now()
    hour = now.replace(minute=0, second=0, microsecond=0)
    token = recorded(hour)
    AlertRuleFactory(kind="forecast", within_seconds=6 * 3_600)
    rule = AlertRuleFactory(kind="forecast", within_seconds=86_400)

    for seconds in range(3):
        evaluate(now + timedelta(seconds=seconds))

    (event,) = AlertEvent.objects.all()
    used_up_at = datetime.fromisoformat(event.data["used_up_at"])
    assert (event.rule, event.subject, event.state) == (rule, event.subject, "raised")
    assert abs(now + timedelta(hours=8) - used_up_at) < timedelta(minutes=1)
    assert event.data["text"] == "40 are left. The forecast is made from the same hours of the last weeks."
    OverrideFactory(limit=token.policy.limits.get(), token=token, quota=10_000)
    evaluate(now + timedelta(minutes=5))

    assert listed() == [("raised", 1), ("resolved", 1)]
    assert AlertEvent.objects.first().title == "free/per-day of kestrel (chat) will not be used up soon"


def test_a_raised_quota_ends_an_alert(issue, use):
    """Although the token is not active any more."""
    token, secret = issue({"quota": 10})
    AlertRuleFactory()
    use(secret, 8)
    evaluate(timezone.now())
    OverrideFactory(limit=token.policy.limits.get(), token=token, quota=100)

    evaluate(timezone.now() + timedelta(minutes=10))

    assert listed() == [("raised", 80), ("resolved", 80)]
    assert AlertEvent.objects.first().title == "free/per-day of kestrel (chat) is below 50 % again"


def test_a_rule_watches_its_project_only(issue, use):
    """The rules of others have no events of it, and one without a project has them all."""
    own = AlertRuleFactory(project=ProjectFactory(slug="other"))
    everything = AlertRuleFactory()
    _, secret = issue({"quota": 1})
    use(secret, 1)

    evaluate(timezone.now())

    assert listed(rule=own) == []
    assert listed(rule=everything) == [("raised", 100)]


def test_without_rules_the_store_is_not_asked(client_of_store):
    before = client_of_store.info("stats")["total_commands_processed"]

    assert evaluate(timezone.now()) == 0
    # INFO itself is one.
    assert client_of_store.info("stats")["total_commands_processed"] - before == 1


def test_an_outage_is_told_of_when_it_begins_and_when_it_ends(store, receiver, webhook):
    """Without Celery, whose broker is away too."""
    AlertRuleFactory(kind="store_outage", told=[webhook()])
    run.evaluate_outage(timezone.now())
    store.kill()

    for _ in range(3):
        run.evaluate_outage(timezone.now())
    assert listed() == [("raised", 1)]
    assert json.loads(receiver.requests[0].body)["type"] == "alert.store_outage.raised"
    store.start()
    for _ in range(2):
        evaluate(timezone.now())
        run.evaluate_outage(timezone.now())
    deliveries.run()

    assert listed() == [("raised", 1), ("resolved", 1)]
    assert [json.loads(request.body)["type"] for request in receiver.requests] == [
        "alert.store_outage.raised",
        "alert.store_outage.resolved",
    ]


def test_nothing_is_over_because_the_store_is_away(issue, use, store):
    """Nobody knows what is used."""
    _, secret = issue({"quota": 1})
    AlertRuleFactory()
    AlertRuleFactory(kind="instances_lost")
    use(secret, 1)
    evaluate(timezone.now())
    store.kill()

    evaluate(timezone.now())

    assert listed() == [("raised", 100)]


@pytest.fixture
def lost(client_of_store, instance, lost_at):
    """An instance on a host that has sent no heartbeat for some time, and has not said goodbye."""

    def make(pk, host):
        client_of_store.zadd("sg:{fleet}:instances", {pk: 1})
        return instance(pk, host=host, seen_at=lost_at)

    return make


def test_lost_instances_are_told_of_by_host(lost, client_of_store):
    """And that they are back, or have said goodbye."""
    AlertRuleFactory(kind="instances_lost")
    now = timezone.now()
    Steadiness.objects.create(looked_at=now, steady_since=now - timedelta(minutes=5))
    for pk, host in (("p-1", "alpha"), ("p-2", "alpha"), ("p-3", "bravo")):
        lost(pk, host)

    evaluate(now)
    titles = [event.title for event in AlertEvent.objects.order_by("subject")]
    assert titles == ["2 instances lost on alpha", "1 instance lost on bravo"]
    client_of_store.zrem("sg:{fleet}:instances", "p-3")
    evaluate(now + timedelta(seconds=1))

    assert AlertEvent.objects.first().title == "No instance counts as lost on bravo"
    assert AlertEvent.objects.filter(state="raised", resolved_at=None).get().title == "2 instances lost on alpha"


def test_instances_have_a_minute_to_report_after_an_outage(lost):
    """They could not reach the store either."""
    AlertRuleFactory(kind="instances_lost")
    lost("p-1", "alpha")
    now = timezone.now()

    for seconds in (0, 30, 59):
        evaluate(now + timedelta(seconds=seconds))
    assert listed() == []
    evaluate(now + timedelta(seconds=60))

    assert listed() == [("raised", 1)]


def test_a_gap_between_two_looks_may_have_been_an_outage(lost):
    AlertRuleFactory(kind="instances_lost")
    lost("p-1", "alpha")
    now = timezone.now()
    Steadiness.objects.create(looked_at=now - timedelta(seconds=46), steady_since=now - timedelta(hours=1))

    evaluate(now)

    assert listed() == []


def test_what_ends_soon_is_told_of_once(store):
    """Tokens, overrides and keys, but not a token that another one replaces."""
    AlertRuleFactory(kind="expiring")
    now = timezone.now()
    soon, late = now + timedelta(days=3), now + timedelta(days=8)
    token = TokenFactory(name="ci", expires_at=soon)
    TokenFactory(name="late", expires_at=late)
    TokenFactory(name="revoked", expires_at=soon, revoked=True)
    replaced = TokenFactory(name="replaced", expires_at=soon)
    Token.objects.filter(pk=replaced.pk).update(replaced_by=token)
    ManagementKeyFactory(name="deploy", expires_at=soon)
    limit = LimitFactory(policy=PolicyFactory(slug="free", everywhere=True), name="per-day")
    OverrideFactory(limit=limit, token=token, ends_at=soon)

    for hours in range(3):
        evaluate(now + timedelta(hours=hours))

    assert sorted(AlertEvent.objects.values_list("title", flat=True)) == [
        "The management key deploy ends soon",
        f"The override free/per-day for {token} ends soon",
        "The token ci ends soon",
    ]
    assert set(listed()) == {("raised", 1)}
    assert not AlertEvent.objects.filter(resolved_at=None).exists()


def test_what_gets_another_end_is_told_of_again(store):
    AlertRuleFactory(kind="expiring")
    now = timezone.now()
    token = TokenFactory(expires_at=now + timedelta(days=3))
    evaluate(now)
    Token.objects.update(expires_at=now + timedelta(days=20))

    evaluate(now + timedelta(days=4))
    assert len(listed()) == 1
    evaluate(now + timedelta(days=14))

    assert len(listed()) == 2
    assert set(AlertEvent.objects.values_list("subject", flat=True)) == {token.pk}


def test_the_ends_of_other_projects_are_not_told(store):
    """Nor are keys, which may be of several projects."""
    rule = AlertRuleFactory(kind="expiring", project=ProjectFactory(slug="own"))
    soon = timezone.now() + timedelta(days=3)
    TokenFactory(name="foreign", expires_at=soon)
    TokenFactory(name="own", project=rule.project, expires_at=soon)
    ManagementKeyFactory(projects=[rule.project], expires_at=soon)

    evaluate(timezone.now())

    assert list(AlertEvent.objects.values_list("title", flat=True)) == ["The token own ends soon"]
