"""A project's anonymous policy over REST, from the request that sets it to the usage of requests without a token."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.drain import drain
from enforcement import Anonymous, Limiter
from enforcement.model.documents import parse_project

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"name": "guests", "algorithm": "fixed_window", "quota": 2, "window_seconds": 86_400}


@pytest.fixture
def website(api, store):
    """A project whose requests without a token have a policy."""
    api("POST", "policies", {"slug": "guests", "name": "Guests", "limits": [LIMIT]})
    response = api("POST", "projects", {"slug": "website", "name": "Website", "anonymous_policy": "guests"})
    assert response.status_code == 201, response.content
    return Project.objects.get()


def test_it_is_saved_shown_audited_and_published(website, api, client_of_store):
    """By its slug in REST, by its id in the document."""
    text = client_of_store.hget("sg:{doc}:documents", f"project:{website.pk}")

    assert api("GET", "projects/website").json()["anonymous_policy"] == "guests"
    assert parse_project(text).anonymous_policy == website.anonymous_policy_id
    assert AuditEntry.objects.get(action="project.create").after["anonymous_policy"] == website.anonymous_policy_id


def test_null_and_its_absence_are_no_anonymous_policy(website, api, client_of_store):
    """A replacement without the field takes it away, and the document is as before."""
    assert api("PUT", "projects/website", {"slug": "website", "name": "W"}).json()["anonymous_policy"] is None
    assert "anonymous_policy" not in client_of_store.hget("sg:{doc}:documents", f"project:{website.pk}")
    api("PATCH", "projects/website", {"anonymous_policy": "guests"})
    assert api("PATCH", "projects/website", {"anonymous_policy": None}).json()["anonymous_policy"] is None


@pytest.mark.parametrize("value", ["missing", "", 7, ["guests"], "of-another"])
def test_what_is_no_policy_of_this_project_is_refused(website, api, value):
    """The rule is that of the project's own policy."""
    api("POST", "projects", {"slug": "another", "name": "Another"})
    api("POST", "policies", {"slug": "of-another", "name": "A", "project": "another", "limits": [LIMIT]})
    response = api("PATCH", "projects/website", {"anonymous_policy": value})

    assert response.status_code == 400
    assert "anonymous_policy" in response.content.decode()
    website.refresh_from_db()
    assert website.anonymous_policy.slug == "guests"


def test_a_policy_in_use_is_not_deleted(website, api):
    """As one that tokens or projects have."""
    response = api("DELETE", "policies/guests")

    assert (response.status_code, response.json()["code"]) == (409, "in_use")
    assert "website" in response.content.decode()


def test_usage_counters_and_a_reset_of_requests_without_a_token(website, api, store, client_of_store):
    """Counted for the project, with no token, and shown and reset with the project's own counters."""
    with Limiter(store.url, timeout=1.0) as limiter:
        decisions = [limiter.check(Anonymous("website")).reason for _ in range(3)]
    drain(timezone.now())
    assert decisions == ["ok", "ok", "limited"]

    rows = api("GET", "usage?project=website&limit=*").json()["results"]
    assert [(row["token"], row["limit"], row["allowed"], row["denied"]) for row in rows] == [
        ("", "guests/guests", 2, 1)
    ]
    (counter,) = api("GET", "counters?project=website").json()["results"]
    assert (counter["limit"], counter["scope"], counter["used"]) == ("guests/guests", "anonymous", 2)
    reset = api("POST", "counters/reset?project=website", {"limit": "guests/guests", "reason": "a test"})
    assert reset.json() == {"reset": 1}
    assert api("GET", "counters?project=website").json()["results"][0]["used"] == 0


def test_an_override_of_the_project_may_change_its_limits(website, api, store):
    """Of the project, and not of a token, which these limits do not count."""
    token = api("POST", "projects/website/tokens", {"name": "ci"}).json()["id"]
    fields = {"limit": "guests/guests", "quota": 50, "reason": "a fair"}

    assert api("POST", "overrides", {**fields, "token": token}).status_code == 400
    assert api("POST", "overrides", {**fields, "project": "website"}).status_code == 201
    with Limiter(store.url, timeout=1.0) as limiter:
        assert limiter.check(Anonymous("website")).limit.quota == 50
