"""A project's cap on the values of an attribute, over REST: checked, published, and told when it is reached."""

import pytest

from controlplane.objects.projects.models import Project
from enforcement.model.documents import parse_project

pytestmark = pytest.mark.django_db(transaction=True)


def create(api, **fields):
    """Create a project, and return the answer."""
    return api("POST", "projects", {"slug": "a", "name": "A", **fields})


@pytest.mark.parametrize("cap", [0, -1, 1_000_001, 1.5, "10", True, None])
def test_a_cap_that_no_enforcer_reads_is_refused(api, store, cap):
    """The value's own rule: a whole number from 1 to a million."""
    response = create(api, partition_cap=cap)

    assert response.status_code == 400
    assert "partition_cap" in response.content.decode()
    assert not Project.objects.exists()


def test_a_cap_is_saved_and_published(api, store, client_of_store):
    """Enforcers read it in the project's document."""
    assert create(api, partition_cap=25).json()["partition_cap"] == 25
    project = Project.objects.get()

    text = client_of_store.hget("sg:{doc}:documents", f"project:{project.pk}")
    assert (project.partition_cap, parse_project(text).partition_cap) == (25, 25)


def test_a_cap_that_is_left_out_is_the_default(api, store):
    """Ten thousand values a limit."""
    assert create(api).json()["partition_cap"] == 10_000


def test_live_counters_say_how_many_values_there_are(full, api):
    """And about how many share a counter, with what that has left: 7 of 1,000 are used."""
    (counter,) = api("GET", "counters?project=full").json()["results"]

    assert counter["used"] is None
    assert counter["values"] == {"present": 5, "cap": 5, "beyond": 7, "remaining": 993}


def test_a_limit_that_is_not_partitioned_has_no_values(full, api):
    """It has a count in place of them."""
    limit = {"name": "all", "algorithm": "sliding_window", "quota": 9, "window_seconds": 60}
    api("PATCH", "policies/full", {"limits": [limit]})
    (counter,) = api("GET", "counters?project=full").json()["results"]

    assert (counter["used"], counter["values"]) == (0, None)
