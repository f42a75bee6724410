"""What needs a hand: each condition while it lasts, and none before or after."""

from datetime import timedelta

import pytest
import redis
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.emergency.models import BreakGlass
from controlplane.objects.projects.actions import revoke_token
from controlplane.operations.alerts.models import AlertEvent, Steadiness
from controlplane.operations.alerts.rule_kinds import OUTAGE, USAGE
from controlplane.operations.alerts.snapshot import Look
from controlplane.operations.health.condition import Level, named
from controlplane.operations.health.conditions import found_now, ordered
from controlplane.operations.health.of_fleet import of_fleet
from controlplane.operations.health.of_store import of_outage, of_outbox
from controlplane.operations.health.of_traffic import of_alerts, of_denials, of_reservations
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reservations.models import ReservationCount
from controlplane.traffic.usage.models import DecisionCount
from enforcement.embedded import ValkeyServer
from tests.factories import (
    AlertRuleFactory,
    CountedUsageFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def now():
    return timezone.now()


def subjects(conditions):
    return [one.subject for one in conditions]


def test_a_quiet_installation_needs_nothing(store, now):
    """With the store there, and no process that uses it yet."""
    assert found_now(now) == []


def test_a_store_that_is_away_is_urgent(now):
    """The test has none. Nobody then says of an instance that it is behind or lost."""
    (one,) = found_now(now)

    assert (one.subject, one.level, one.fault) == ("store", Level.URGENT, "The store does not answer")


def revisions(now, *ages):
    """Make a revision for each age, from the oldest, the first with number 1."""
    for number, age in enumerate(ages, 1):
        Revision.objects.create(number=number, published_at=now - age, changes={"documents": {}})


def fleet_of(*instances):
    return Fleet(instances)


def test_an_instance_that_is_behind_says_since_when(now):
    """Since the first revision that it lacks. One that is on its way is not behind."""
    revisions(now, 9 * MINUTE, 5 * MINUTE, timedelta(seconds=1))
    instances = [
        Instance(id="proxy-3", revision=1, started_at=now - 60 * MINUTE, seen_at=now),
        Instance(id="proxy-4", revision=2, started_at=now - 60 * MINUTE, seen_at=now),
    ]

    (one,) = of_fleet(fleet_of(*instances), [], now)

    assert (one.fault, one.text, one.level) == ("proxy-3 is 1 revision behind", "", Level.LOOK)
    assert (one.since, one.deed, one.target.pk) == (now - 5 * MINUTE, "See proxy-3", "proxy-3")


def test_it_is_urgent_if_the_instance_admits_what_was_revoked(store, now, actor):
    """Which is what somebody wants to know at once."""
    token = TokenFactory()
    with change(actor=actor) as tx:
        revoke_token(tx, token)
    publisher.publish_all()
    Revision.objects.update(published_at=now - MINUTE)
    old = Instance(id="proxy-3", revision=0, started_at=now - 60 * MINUTE, seen_at=now)

    (one,) = of_fleet(fleet_of(old), [], now)

    assert (one.level, one.text) == (Level.URGENT, "and still admits what was revoked or suspended (1)")


def test_lost_instances_are_named(now):
    """Those of the last hour."""
    lost = [Instance(id=f"us-{age}", seen_at=now - age * MINUTE) for age in (5, 31, 90)]

    (one,) = of_fleet(fleet_of(), lost, now)

    assert (one.fault, one.text, one.since) == ("us-5 and us-31 are lost", "0 still report", now - 5 * MINUTE)


def test_a_full_cap_is_for_the_members_of_its_project(now):
    """Its limit is named."""
    project, policy = ProjectFactory(slug="mobile"), PolicyFactory(slug="api")
    instance = Instance(seen_at=now)
    instance.overflowing = [(project.pk, policy.pk, "per-ip")]

    (one,) = of_fleet(fleet_of(instance), [], now)

    assert (one.fault, one.project) == ("mobile has more values than its cap", project.pk)
    assert one.text == "the other values of api/per-ip share one counter"


@pytest.mark.parametrize(
    ("age", "level"), [(timedelta(seconds=2), None), (MINUTE, Level.LOOK), (11 * MINUTE, Level.URGENT)]
)
def test_a_change_that_waits_is_shown_once_it_is_late(now, age, level):
    """Not while it is on its way, and in red after ten minutes."""
    entry = OutboxEntry.objects.create(kind="policy", object_id="pol_1", change="chg_1")
    OutboxEntry.objects.filter(pk=entry.pk).update(created_at=now - age)

    found = list(of_outbox(now))

    assert [one.level for one in found] == ([level] if level else [])
    assert [one.fault for one in found] == (["1 change is not published"] if level else [])


def test_an_outage_that_is_over_is_shown_for_a_day(now):
    """With its length, which looks at the store have found out."""
    rule = AlertRuleFactory(kind=OUTAGE, project=None)
    with ValkeyServer() as server:
        looks = [(0, ""), (10, "gone"), (32, "")]
        for second, away in looks:
            look = Look(now + timedelta(seconds=second), [rule], client=redis.Redis.from_url(server.url))
            if away:
                look.client = Look(now, [rule]).client  # the address of the tests, at which nothing answers
            look.begin()

    row = Steadiness.objects.get()
    assert (row.away_since, row.was_away_until - row.was_away_since) == (None, timedelta(seconds=22))
    (one,) = of_outage(now + MINUTE)
    assert one.fault == "The store was away for 22 seconds"
    assert "0 requests since" in one.text
    assert list(of_outage(now + 25 * HOUR)) == []


def event_of(rule, level, **more):
    data = {"remaining": 0 if level == 100 else 5, "text": f"{level} of 100 are used."}
    fields = {"kind": USAGE, "subject": "tok_1|lim_1", "title": f"api/day of web has reached {level} %"}
    return AlertEvent.objects.create(rule=rule, level=level, at=timezone.now(), data=data, **(fields | more))


def test_an_alert_that_fires_is_shown_once_with_its_highest_threshold():
    """In red if it denies, and for whoever sees its project."""
    project = ProjectFactory()
    rule = AlertRuleFactory(kind=USAGE, project=project)
    for level in (50, 80):
        event_of(rule, level, project=project)

    (one,) = of_alerts()
    assert (one.fault, one.text, one.level) == ("api/day of web has reached 80 %", "80 of 100 are used", Level.LOOK)

    event_of(rule, 100, project=project)
    (one,) = of_alerts()
    assert (one.level, one.weight, one.project) == (Level.URGENT, 100, project.pk)


def test_what_is_over_or_a_condition_of_its_own_is_no_alert_here():
    """The store, for instance, is asked by the page itself."""
    rule = AlertRuleFactory(kind=USAGE)
    event_of(rule, 80, resolved_at=timezone.now())
    event_of(rule, 1, kind=OUTAGE)

    assert list(of_alerts()) == []


def test_denials_that_jump_are_shown(now):
    """Compared with the day before, and only if they are many."""
    CountedUsageFactory(
        period="hour", at=(now - timedelta(hours=5)).replace(minute=0, second=0), allowed=990, denied=10
    )
    minute = (now - 2 * MINUTE).replace(second=0, microsecond=0)
    CountedUsageFactory(at=minute, allowed=20, denied=10)
    assert of_denials(now) == []
    policy = PolicyFactory(slug="chat")
    CountedUsageFactory(at=minute - MINUTE, allowed=56, denied=14)
    key = {"period": "minute", "at": minute, "policy_id": policy.pk, "project_id": "proj_1"}
    DecisionCount.objects.create(**key, denied=24)

    (one,) = of_denials(now)

    assert (one.fault, one.text) == ("Denials jumped from 1.0 to 24.0 %", "most by chat")


def test_lost_reservations_are_those_of_a_project(now):
    """Those of a deleted one concern nobody."""
    project = ProjectFactory(slug="apollo")
    for key, lost in ((project.pk, 14), ("proj_gone", 3)):
        ReservationCount.objects.create(project_id=key, lost=lost, lost_since=now - MINUTE)

    (one,) = of_reservations()

    assert (one.fault, one.since, one.project) == ("14 reservations of apollo were lost", now - MINUTE, project.pk)


def test_a_broken_glass_is_the_first_line(store, now):
    """Nothing is well while no limit is enforced."""
    BreakGlass.objects.create(began_at=now, ends_at=now + 60 * MINUTE, reason="provider outage", by="ines")

    found = ordered(found_now(now))

    assert found[0].fault.startswith("No limit is enforced until")
    assert found[0].text.startswith('ines, "provider outage"')


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e", "f"], "a, b and 4 more"),
    ],
)
def test_names_in_words(names, said):
    """Three of them, or two and how many others."""
    assert named(names) == said
