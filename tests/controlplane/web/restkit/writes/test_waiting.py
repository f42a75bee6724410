"""Changes with ``wait=acknowledged``, which are answered when every live instance has them."""

import json

import pytest
from django.utils import timezone

from controlplane.core import store as core_store
from controlplane.core.instants import microseconds
from controlplane.releases.publishing.publisher import begin_epoch
from controlplane.web.restkit.writes import waiting
from controlplane.web.restkit.writes.waiting import Acknowledgement, acknowledgement_of
from enforcement import Limiter
from enforcement.model.documents import StateName
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

CHAT = {"slug": "chat", "name": "Chat"}
# Python would read some of them as numbers from 1 to 10.
TIMES = ["11", "0", "-1", "9" * 30, "x", "nan", "", "5.0", "1_0", "%2B5", "%205", "\u0665", "5&timeout=6"]


@pytest.fixture
def reports(client_of_store):
    """``reports("a", 3)``: the heartbeat of an instance that runs a revision."""

    def report(name: str, revision: int, store_id: str = "") -> None:
        keys, now = core_store.keys(), microseconds(timezone.now())
        beat = {"id": name, "revision": revision, "state": "ok", "seen_at_us": now, "store_id": store_id}
        client_of_store.set(keys.instance(name), json.dumps(beat))
        client_of_store.zadd(keys.instances, {name: now})

    return report


@pytest.fixture
def clock():
    """A clock that moves only while somebody pauses."""

    class Clock:
        def __init__(self) -> None:
            self.now, self.pauses = 0.0, []
            self.deeds = {}

        def __call__(self) -> float:
            return self.now

        def pause(self, seconds: float) -> None:
            self.now += seconds
            self.pauses.append(seconds)
            self.deeds.pop(len(self.pauses), lambda: None)()

    return Clock()


def test_the_response_comes_when_the_fleet_has_the_change(api, store):
    """A real enforcer has acknowledged the revision by then."""
    with Limiter(store.url, timeout=1.0) as limiter:
        limiter.check("sg_live_unknown", attributes={})
        response = api("POST", "projects?wait=acknowledged&timeout=10", CHAT)

    assert (response.status_code, response["Sluicegate-Revision"]) == (201, "1")
    assert response["Sluicegate-Acknowledged"] == "true; instances=1; behind=0"


def test_nobody_is_not_everybody(store, clock):
    """Without a live instance nothing says that the change is anywhere, and there is nobody to wait for."""
    found = acknowledgement_of("", 5.0, clock, clock.pause)

    assert (found.is_everywhere, found.header(with_numbers=True)) == (False, "false; instances=0; behind=0")
    assert clock.pauses == []


def test_the_time_is_bounded(api, store, reports):
    """The change is made and published. The header says that one instance lacks it."""
    reports("old", 0)

    response = api("POST", "projects?wait=acknowledged&timeout=1", CHAT)

    assert (response.status_code, response["Sluicegate-Revision"]) == (201, "1")
    assert response["Sluicegate-Acknowledged"] == "false; instances=1; behind=1"


def test_it_waits_with_longer_and_longer_pauses(api, store, reports, clock):
    """And ends as soon as the last instance has it."""
    api("POST", "projects", CHAT)
    reports("one", 1)
    reports("two", 0)
    clock.deeds[3] = lambda: reports("two", 1)

    found = acknowledgement_of("chg_of_nothing", 5, clock, clock.pause)

    assert found == Acknowledgement(StateName(0, 1), 2, 0)
    assert clock.pauses == pytest.approx([0.05, 0.075, 0.1125])


def test_it_gives_up_at_the_end_of_its_time(store, reports, clock):
    """Not later, and after few looks."""
    reports("one", -1)

    found = acknowledgement_of("chg_of_nothing", 5, clock, clock.pause)

    assert (found.is_everywhere, clock.now, len(clock.pauses) < 20) == (False, pytest.approx(5), True)


def test_sql_is_asked_only_while_the_change_is_pending(api, store, reports, clock, django_assert_num_queries):
    """The heartbeats are in the store."""
    api("POST", "projects", CHAT)
    reports("one", 0)

    with django_assert_num_queries(2):
        acknowledgement_of("chg_of_nothing", 5, clock, clock.pause)


def test_a_higher_revision_of_an_earlier_epoch_is_no_acknowledgement(api, store, reports):
    """After a restore, an instance runs what the backup lacks until it has read the new epoch."""
    begin_epoch(by="ann", channel="command", reason="Restored")
    reports("stale", 500, "store")
    reports("fresh", 2, "store.1")

    waited = api("POST", "projects?wait=acknowledged&timeout=1", CHAT)
    shown = api("GET", "revisions/2").json()

    assert waited["Sluicegate-Acknowledged"] == "false; instances=2; behind=1"
    assert (shown["acknowledged"], shown["instances"], shown["behind"]) == (1, 2, ["stale"])


def test_a_store_that_is_away_is_no_acknowledgement(api):
    """The change is pending, and the response says so after the time."""
    response = api("POST", "projects?wait=acknowledged&timeout=1", CHAT)

    assert (response.status_code, response["Sluicegate-Revision"]) == (201, "pending")
    assert response["Sluicegate-Acknowledged"] == "false"


def test_not_every_thread_waits(store, reports, clock):
    """With two that wait already, a third is answered at once."""
    reports("one", -1)
    taken = [waiting._turns.acquire(blocking=False) for _ in range(2)]
    try:
        found = acknowledgement_of("chg_of_nothing", 5, clock, clock.pause)
    finally:
        for _ in taken:
            waiting._turns.release()

    assert (taken, found.is_everywhere, clock.pauses) == ([True, True], False, [])


def test_a_repetition_waits_for_the_change_of_the_first(api, store):
    """Its own request has made none."""
    first, again = (api("POST", "projects?wait=acknowledged", CHAT, idempotency_key="a") for _ in range(2))

    assert again["Idempotency-Replayed"] == "true"
    assert again["Sluicegate-Acknowledged"] == first["Sluicegate-Acknowledged"]
    assert again["Sluicegate-Revision"] == "1"


def test_a_limited_key_does_not_learn_the_size_of_the_fleet(call, store):
    """Instances serve every project."""
    key = ManagementKeyFactory(projects=[ProjectFactory(slug="chat")])

    with Limiter(store.url, timeout=1.0) as limiter:
        limiter.check("sg_live_unknown", attributes={})
        response = call("PATCH", "projects/chat?wait=acknowledged&timeout=10", {"name": "New"}, key=key)

    assert response["Sluicegate-Acknowledged"] == "true"


def test_a_refused_change_and_a_dry_run_wait_for_nothing(api, store, reports):
    """There is nothing to acknowledge."""
    reports("old", 0)

    for query, body in (("wait=acknowledged", {"slug": "chat"}), ("wait=acknowledged&dry_run=true", CHAT)):
        assert not api("POST", f"projects?{query}", body).has_header("Sluicegate-Acknowledged")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("wait=published", "wait"),
        ("timeout=3", "timeout"),
        *((f"wait=acknowledged&timeout={time}", "timeout") for time in TIMES),
    ],
)
def test_other_words_and_times_are_refused(api, query, parameter):
    """The error names the parameter."""
    response = api("POST", f"projects?{query}", CHAT)

    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (400, parameter)
