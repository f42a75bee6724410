import time

import pytest

from controlplane.objects.policies.models import Limit
from controlplane.releases.publishing.models import Revision
from enforcement import Limiter

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def two_revisions(api, store):
    """Two revisions: a quota of 100, then one of 50."""
    limit = {"name": "per-minute", "quota": 100, "window_seconds": 60}
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": [limit]})
    api("PATCH", "policies/free", {"limits": [{**limit, "quota": 50}]})


def test_a_revision_is_acknowledged_by_an_enforcer_that_runs_it(api, two_revisions, store):
    """As its heartbeat says in the store: nobody waits for a job to collect it."""
    deadline = time.monotonic() + 10
    with Limiter(store.url):
        while (revision := api("GET", "revisions/2").json())["acknowledged"] == 0 and time.monotonic() < deadline:
            time.sleep(0.02)

    assert (revision["instances"], revision["acknowledged"], revision["behind"]) == (1, 1, [])


def test_a_revision_says_who_ran_it_when_the_store_was_last_seen(api, two_revisions, store, instance, lost_at):
    """While the store is away: counted are instances that ran then, those behind by name."""
    store.kill()
    instance("new", revision=2)
    instance("old", revision=1)
    instance("lost", revision=1, seen_at=lost_at)

    revision = api("GET", "revisions/2").json()

    assert (revision["instances"], revision["acknowledged"], revision["behind"]) == (2, 1, ["old"])
    assert (revision["by"], revision["channel"]) == ("ann", "api")


def test_revisions_are_listed_without_their_documents(api, two_revisions):
    """Newest first; a full one may be large."""
    found = api("GET", "revisions").json()["results"]

    assert [revision["revision"] for revision in found] == [2, 1]
    assert "changes" not in found[0]


def test_a_rollback_is_a_new_revision(api, two_revisions):
    """The old numbers, a new number, and the reason in the audit."""
    response = api("POST", "revisions/1/rollback", {"reason": "too tight"})

    assert (response.json(), response["Sluicegate-Revision"]) == ({"rolled_back_to": 1, "revision": 3}, "3")
    assert Limit.objects.get().quota == 100
    assert api("GET", "audit").json()["results"][0]["reason"] == "too tight"


def test_a_rollback_needs_a_reason(api, two_revisions):
    """Whoever comes later wants to know."""
    assert api("POST", "revisions/1/rollback", {}).json()["errors"][0]["pointer"] == "#/reason"
    assert Revision.objects.count() == 2


def test_there_is_no_way_back_to_what_never_was(api, two_revisions):
    """Not found, nothing changed."""
    assert api("POST", "revisions/9/rollback", {"reason": "x"}).status_code == 404
