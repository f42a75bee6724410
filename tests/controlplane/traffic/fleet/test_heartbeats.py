import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.releases.publishing import tasks
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import Instance
from enforcement.store.client import STORE_ERRORS
from tests.factories import InstanceFactory, LimitFactory, MembershipFactory, PolicyFactory

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOON_US = 1_795_521_600_000_000

HEARTBEAT = {
    "id": "proxy-1",
    "host": "proxy.example",
    "pid": 4242,
    "version": "0.1.0",
    "revision": 7,
    "state": "ok",
    "started_at_us": NOON_US - 3_600_000_000,
    "seen_at_us": NOON_US,
    "store_id": "5f3a",
    "decisions": {"allowed": 90, "denied": 10, "fallback": 0},
    "degraded_since_us": None,
}


@pytest.fixture
def beat(client_of_store):
    """Write a heartbeat as an enforcer does; ``beat(revision=8)`` changes a field of it."""

    def write(**changed) -> None:
        heartbeat = {**HEARTBEAT, **changed}
        client_of_store.set(f"sg:{{fleet}}:instance:{heartbeat['id']}", json.dumps(heartbeat), px=15_000)
        seen = heartbeat["seen_at_us"]
        at_us = seen if isinstance(seen, int) and seen < 2**53 else NOON_US  # Instances of days ago are listed nowhere.
        client_of_store.zadd("sg:{fleet}:instances", {str(heartbeat["id"]): at_us})

    return write


def test_a_heartbeat_is_read_as_an_instance(beat):
    """Everything that an enforcer says of itself can be shown."""
    beat()

    instance = heartbeats.live_instances()[0]

    assert (instance.id, instance.host, instance.pid, instance.version) == ("proxy-1", "proxy.example", 4242, "0.1.0")
    assert (instance.revision, instance.state, instance.store_id) == (7, "ok", "5f3a")
    assert (instance.started_at, instance.seen_at) == (NOON - timedelta(hours=1), NOON)
    assert instance.degraded_since is None
    assert instance.decisions == {"allowed": 90, "denied": 10, "fallback": 0}


def test_instances_come_in_the_order_of_their_ids(beat):
    """Two looks at the fleet show it in one order."""
    for name in ("proxy-2", "proxy-3", "proxy-1"):
        beat(id=name)

    assert [instance.id for instance in heartbeats.live_instances()] == ["proxy-1", "proxy-2", "proxy-3"]


def test_limits_that_count_nothing_are_marked_everywhere(beat, api, admin_client):
    """In the list of instances, at the instance, on the first page and over REST."""
    beat(seen_at_us=time.time_ns() // 1_000, unmetered=[["proj_2", "gold", "tpm"], ["proj_1", "gold", "tpm"]])
    heartbeats.collect(datetime.now(UTC))

    rows = api("GET", "instances").json()["results"]
    pages = [admin_client.get(f"/admin/{path}").content.decode() for path in ("fleet/instance/", "")]
    page = admin_client.get("/admin/fleet/instance/proxy-1/change/").content.decode()

    assert [row["unmetered"] for row in rows] == [["gold/tpm"]]
    assert "unmetered limits" in pages[0]
    assert "gold/tpm counts nothing" in pages[1]
    assert "gold/tpm: requests give no cost in their unit" in page


def test_limits_that_an_instance_cannot_enforce_are_marked_everywhere(beat, api, admin_client):
    """In the list of instances, at the instance, at the policy, on the first page and over REST."""
    policy = PolicyFactory(slug="gold")
    LimitFactory(policy=policy, name="slots", algorithm="concurrency")
    LimitFactory(policy=policy, name="ok")  # was changed since
    report = [
        ["proj_2", "gold", "slots", "slots"],
        ["proj_1", "gold", "slots", "slots"],
        ["p", "gold", "ok", "charge_on"],
    ]
    beat(seen_at_us=time.time_ns() // 1_000, unsupported=[*report, ["p", "other", "new", "a <reason>"]])
    heartbeats.collect(datetime.now(UTC))

    (row,) = api("GET", "instances").json()["results"]
    listed, first = [admin_client.get(f"/admin/{path}").content.decode() for path in ("fleet/instance/", "")]
    page = admin_client.get("/admin/fleet/instance/proxy-1/change/").content.decode()
    of_policy = admin_client.get(f"/admin/policies/policy/{policy.pk}/change/").content.decode()

    assert row["unsupported"] == [
        {"limit": "gold/ok", "reason": "charge_on"},
        {"limit": "gold/slots", "reason": "slots"},
        {"limit": "other/new", "reason": "a <reason>"},
    ]
    assert "unsupported limits" in listed
    for limit in ("gold/ok", "gold/slots", "other/new"):
        assert f"1 instance denies every request under {limit}" in first
    assert "gold/ok is charged by the status of the response, gold/slots counts slots" in page
    assert "a &lt;reason&gt;" in page
    assert "slots counts slots. Requests under it are refused by" in of_policy
    assert "/admin/fleet/instance/proxy-1/change/" in of_policy
    assert "reason&gt;" not in of_policy
    assert "charged by the status" not in of_policy


def test_who_may_not_see_instances_sees_none_at_a_policy(beat, client):
    """The page of a policy names them only to operators, who may open their pages."""
    policy = PolicyFactory(slug="gold")
    LimitFactory(policy=policy, name="slots", algorithm="concurrency")
    beat(seen_at_us=time.time_ns() // 1_000, unsupported=[["proj_1", "gold", "slots", "slots"]])
    heartbeats.collect(datetime.now(UTC))
    client.force_login(MembershipFactory(role="owner").user)

    page = client.get(f"/admin/policies/policy/{policy.pk}/change/")

    assert page.status_code == 200
    assert "proxy-1" not in page.content.decode()


def test_an_instance_that_counts_everything_has_no_mark(beat, api, admin_client):
    """A heartbeat of 0.2.0 says nothing of it."""
    beat(seen_at_us=time.time_ns() // 1_000)
    heartbeats.collect(datetime.now(UTC))

    assert [row["unmetered"] for row in api("GET", "instances").json()["results"]] == [[]]
    assert "unmetered" not in admin_client.get("/admin/fleet/instance/").content.decode()
    assert "unmetered" not in admin_client.get("/admin/").content.decode()
    assert "unsupported" not in admin_client.get("/admin/").content.decode()
    assert [row["unsupported"] for row in api("GET", "instances").json()["results"]] == [[]]


def test_an_expired_heartbeat_is_no_instance(beat, client_of_store):
    """The set of ids remembers longer than the heartbeats live."""
    beat()
    client_of_store.delete("sg:{fleet}:instance:proxy-1")

    assert heartbeats.live_instances() == []


def test_limits_in_code_that_are_switched_off_are_shown(beat, admin_client, api):
    """An instance that has them in force shows nothing in the admin."""
    for mode in ("off", ""):
        beat(seen_at_us=time.time_ns() // 1_000, in_code=mode)
        heartbeats.collect(datetime.now(UTC))
        page = admin_client.get("/admin/fleet/instance/").content.decode()
        assert ("limits in code: off" in page) is (mode == "off")
        assert api("GET", "instances").json()["results"][0]["in_code"] == (mode or "enforce")


@pytest.mark.parametrize(
    "nonsense",
    [
        {"state": "fine"},
        {"state": None},
        {"revision": -(2**70)},
        {"revision": "seven"},
        {"seen_at_us": None},
        {"seen_at_us": 2**70},
        {"seen_at_us": 253_402_300_798_999_999},
        {"seen_at_us": 1_500_000_000_000_000},
        {"started_at_us": 253_402_300_798_999_999},
        {"glass_until_us": 253_402_300_798_999_999},
        {"started_at_us": "noon"},
        {"decisions": [1]},
        {"decisions": {"allowed": -1}},
        {"host": "h" * 300},
        {"pid": "many"},
        {"in_code": "sometimes"},
        {"unmetered": "all"},
        {"unmetered": [["p", "api"]]},
        {"unsupported": "all"},
        {"unsupported": [["p", "api", "slots"]]},
        {"unsupported": [["p", "api", "slots", 5]]},
    ],
    ids=str,
)
def test_a_heartbeat_that_makes_no_sense_hides_no_other(beat, nonsense):
    """One broken or hostile enforcer does not blind the control plane to the fleet."""
    beat()
    beat(id="proxy-2", **nonsense)

    assert [instance.id for instance in heartbeats.live_instances()] == ["proxy-1"]


def test_a_heartbeat_that_is_no_json_hides_no_other(beat, client_of_store):
    """Whatever stands there, the others are read."""
    beat()
    beat(id="proxy-2")
    client_of_store.set("sg:{fleet}:instance:proxy-2", "[" * 100_000)

    assert [instance.id for instance in heartbeats.live_instances()] == ["proxy-1"]


def test_an_instance_cannot_speak_for_another(beat, client_of_store):
    """The id in a heartbeat is the one under which it was found."""
    beat()
    client_of_store.rename("sg:{fleet}:instance:proxy-1", "sg:{fleet}:instance:proxy-2")
    client_of_store.zadd("sg:{fleet}:instances", {"proxy-2": NOON_US})

    assert heartbeats.live_instances() == []


def test_a_field_of_a_newer_enforcer_is_left_alone(beat):
    """A fleet is upgraded one proxy at a time."""
    beat(mood="cheerful")

    assert heartbeats.live_instances()[0].id == "proxy-1"


def test_reading_says_that_the_store_is_away(store):
    """An empty fleet and an unknown one are not the same."""
    store.kill()

    with pytest.raises(STORE_ERRORS):
        heartbeats.live_instances()


def test_collected_heartbeats_are_saved(beat):
    """What was last known can be shown while the store is away."""
    beat()

    assert heartbeats.collect(NOON) == 1
    saved = Instance.objects.get()
    assert (saved.id, saved.revision, saved.seen_at) == ("proxy-1", 7, NOON)


def test_a_later_heartbeat_replaces_the_row(beat):
    """There is one row an instance, with its present revision and state."""
    beat()
    heartbeats.collect(NOON)
    beat(revision=8, state="degraded", degraded_since_us=NOON_US, seen_at_us=NOON_US + 5_000_000)

    heartbeats.collect(NOON + timedelta(seconds=5))

    saved = Instance.objects.get()
    assert (saved.revision, saved.state, saved.degraded_since) == (8, "degraded", NOON)
    assert saved.seen_at == NOON + timedelta(seconds=5)


def test_a_gone_instance_stays_for_two_days(beat, client_of_store):
    """Who disappeared, and when, is known for two days, and then forgotten in both places."""
    beat()
    heartbeats.collect(NOON)
    client_of_store.delete("sg:{fleet}:instance:proxy-1")

    heartbeats.collect(NOON + timedelta(hours=47))
    assert (Instance.objects.count(), client_of_store.zcard("sg:{fleet}:instances")) == (1, 1)

    heartbeats.collect(NOON + timedelta(hours=49))
    assert (Instance.objects.count(), client_of_store.zcard("sg:{fleet}:instances")) == (0, 0)


def test_a_revision_is_acknowledged_by_who_runs_it_or_a_later_one():
    """The admin and the API say how many of how many have a change."""
    instances = [InstanceFactory.build(revision=revision) for revision in (6, 7, 8)]

    assert heartbeats.acknowledged(7, 0, instances) == (2, 3)


@pytest.mark.parametrize(("seconds", "live"), [(0, True), (14, True), (15, False), (60, False)])
def test_an_instance_is_live_while_its_heartbeat_is(seconds, live):
    """A row says the same as the store, in which a heartbeat expires after 15 seconds."""
    instance = InstanceFactory.build(seen_at=NOON)

    assert heartbeats.is_live(instance, NOON + timedelta(seconds=seconds)) is live


def test_a_store_that_is_away_fails_no_task(store):
    """The next run is the retry."""
    store.kill()

    assert tasks.collect_heartbeats() == 0


def test_nobody_is_seen_in_the_future(beat, client_of_store, store):
    """A clock that is wrong, or a lie, prolongs no instance's life: it ages by the store's clock."""
    now_us = int(client_of_store.time()[0]) * 1_000_000
    beat(seen_at_us=now_us + 1_800_000_000)
    client_of_store.zadd("sg:{fleet}:instances", {"ghost": now_us + 7_200_000_000, "proxy-1": now_us})
    Instance.objects.create(id="ghost", seen_at=datetime(9999, 12, 31, tzinfo=UTC))
    now = datetime.fromtimestamp(now_us / 1e6, UTC)

    heartbeats.collect(now)

    (instance,) = Instance.objects.all()
    assert (instance.pk, instance.seen_at <= now + timedelta(minutes=1)) == ("proxy-1", True)
    assert client_of_store.zrange("sg:{fleet}:instances", 0, -1) == ["proxy-1"]


def test_ghosts_hide_nobody_for_longer_than_until_the_next_heartbeat(beat, client_of_store, monkeypatch):
    """An account of a project adds ids without end: in the future, and just now without a heartbeat."""
    monkeypatch.setattr(heartbeats, "MOST_INSTANCES", 3)
    monkeypatch.setattr(heartbeats, "READ_AT_ONCE", 2)
    now_us = int(client_of_store.time()[0]) * 1_000_000
    ahead = {f"ghost-{n}": now_us + 60_000_000 + n for n in range(4)}
    client_of_store.zadd("sg:{fleet}:instances", ahead | {f"empty-{n}": now_us - n for n in range(7)})
    beat()

    assert [instance.id for instance in heartbeats.live_instances()] == ["proxy-1"]
    Instance.objects.create(id="empty-6", seen_at=datetime.now(UTC) - timedelta(minutes=1))
    assert [instance.id for instance in heartbeats.lost_instances(datetime.now(UTC))] == ["empty-6"]
    heartbeats.collect(datetime.fromtimestamp(now_us / 1e6, UTC))
    assert not client_of_store.zcount("sg:{fleet}:instances", now_us + 2_000_000, "+inf")


def test_of_too_many_heartbeats_the_last_heard_are_shown(beat, client_of_store, monkeypatch, caplog):
    """A made-up one is as good as a real one, until the real one comes again."""
    monkeypatch.setattr(heartbeats, "MOST_INSTANCES", 2)
    monkeypatch.setattr(heartbeats, "READ_AT_ONCE", 1)
    for number, name in enumerate(("proxy-1", "ghost-1", "ghost-2", "proxy-1")):
        beat(id=name, seen_at_us=NOON_US + number)

    assert [instance.id for instance in heartbeats.live_instances()] == ["ghost-2", "proxy-1"]
    assert "more than 2 heartbeats" in caplog.text
