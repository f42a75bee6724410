"""The reservations of the store and of SQL as one list."""

import pytest

from controlplane.objects.projects.models import Project
from controlplane.traffic.reservations import listing
from enforcement import Limiter
from enforcement.model.keys import Keys
from enforcement.plan.records import RecordKeys
from tests.factories import ManagementKeyFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_list_says_that_it_has_not_all(api, lost, client_of_store, monkeypatch):
    """Also of those that only SQL knows, because the store has dropped them from its index."""
    monkeypatch.setattr(listing, "MAX_LISTED", 2)
    ids = lost(3)
    both = api("GET", "reservations").json()
    for one in ids:
        where = RecordKeys.from_id(Keys(), one)
        client_of_store.zrem(where.index, where.ident)
    kept = api("GET", "reservations").json()

    assert [(len(page["results"]), page["truncated"]) for page in (both, kept)] == [(2, True), (2, True)]


def test_those_of_others_neither_hide_nor_show_in_the_list_of_a_project(api, call, store, reserved, monkeypatch):
    """Requests under the global policy alone have one index for all projects."""
    api(
        "POST",
        "policies",
        {"slug": "all", "name": "All", "limits": [{"name": "rpm", "quota": 9, "window_seconds": 60}]},
    )
    api("PUT", "global", {"policy": "all"})
    api("POST", "projects", {"slug": "other", "name": "Other"})
    other = api("POST", "projects/other/tokens", {"name": "ci"}).json()
    with Limiter(store.url, timeout=2.0) as limiter:
        plan = limiter.find_plan(other["secret"], None)
        made = [limiter.admit_plan(plan, {}, None, {"model": "gpt-x"}).id for _ in range(3)]
    assert {one.partition(".")[0] for one in made} == {"global"}
    monkeypatch.setattr(listing, "MAX_LISTED", 2)

    own = ManagementKeyFactory(all_projects=False, projects=[Project.objects.get(slug="chat")])
    page = call("GET", "reservations", key=own).json()
    of_token = api("GET", f"reservations?token={other['id']}").json()

    assert ([row["id"] for row in page["results"]], page["truncated"]) == ([reserved], False)
    assert (len(of_token["results"]), of_token["truncated"]) == (2, True)
    answers = [call("GET", f"reservations/{one}", key=own).json() for one in (made[0], f"global.{'0' * 32}")]
    assert answers[0]["detail"] == answers[1]["detail"]
