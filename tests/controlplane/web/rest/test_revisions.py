"""The undo over REST follows the rules of the page of the admin."""

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Limit, Policy
from controlplane.releases.publishing.models import PublishedChange, Revision
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)
LIMIT = {"name": "per-minute", "quota": 100, "window_seconds": 60}


@pytest.fixture
def two_revisions(api, store):
    """Two revisions: a quota of 100, then one of 50."""
    api("POST", "policies", {"slug": "free", "name": "Free", "limits": [LIMIT]})
    api("PATCH", "policies/free", {"limits": [{**LIMIT, "quota": 50}]})


def undo(api, number=2, query="", **body):
    return api("POST", f"revisions/{number}/undo{query}", {"reason": "too tight", **body})


def test_a_revision_is_undone_by_a_new_one(api, two_revisions):
    """The response says what was changed back, and the audit why."""
    response = undo(api)
    found = response.json()

    assert (response.status_code, response["Sluicegate-Revision"]) == (200, "3")
    assert (found["undone"], found["revision"], found["stays"]) == (2, 3, [])
    assert [(one["type"], one["label"]) for one in found["objects"]] == [("policy", "free")]
    assert Limit.objects.get().quota == 100
    assert PublishedChange.objects.get(revision=3).undoes_id == 2
    assert AuditEntry.objects.values_list("action", "actor", "reason").first() == ("policy.undo", "ann", "too tight")


def test_a_dry_run_changes_nothing(api, two_revisions):
    """It says in words what the undo would do, and names that plan."""
    response = undo(api, query="?dry_run=true")
    found = response.json()

    assert (response.status_code, found["revision"], response.has_header("Sluicegate-Revision")) == (200, None, False)
    assert found["objects"][0]["changes"][0]["after"] == "100 requests per minute"
    assert (Limit.objects.get().quota, Revision.objects.count(), AuditEntry.objects.count()) == (50, 2, 2)
    assert undo(api, plan=found["plan"]).status_code == 200


def test_a_plan_that_is_out_of_date_is_refused(api, two_revisions):
    """Somebody changed the limit after the dry run, so another undo would be done than was read."""
    plan = undo(api, query="?dry_run=true").json()["plan"]
    api("PATCH", "policies/free", {"limits": [{**LIMIT, "quota": 7}]})

    response = undo(api, plan=plan)

    assert (response.status_code, response.json()["code"]) == (409, "plan_changed")
    assert Limit.objects.get().quota == 7


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_what_was_changed_again_is_refused(api, two_revisions, query):
    """Nothing of it is left to undo, as the admin says, too, and why."""
    api("PATCH", "policies/free", {"limits": [{**LIMIT, "quota": 7}]})

    response = undo(api, query=query)

    assert (response.status_code, response.json()["code"]) == (409, "cannot_be_undone")
    assert response.json()["detail"] == (
        "Nothing was changed. Nothing of it is left to undo. "
        "Quota of free/per-minute stays, because it was changed since."
    )


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_a_rule_that_is_broken_by_now_refuses_it(api, two_revisions, query):
    """Another policy took the slug, and a dry run finds that out, too."""
    api("PATCH", "policies/free", {"slug": "gratis"})
    api("POST", "policies", {"slug": "free", "name": "Other", "limits": []})

    response = undo(api, 3, query)

    assert (response.status_code, response.json()["code"]) == (409, "cannot_be_undone")
    assert set(Policy.objects.values_list("slug", flat=True)) == {"gratis", "free"}


@pytest.mark.parametrize(
    ("body", "query", "place"),
    [
        ({}, "", {"pointer": "#/reason"}),
        ({"reason": " "}, "", {"pointer": "#/reason"}),
        ({"reason": "x", "plan": 1}, "", {"pointer": "#/plan"}),
        ({"reason": "x", "force": True}, "", {"pointer": "#/force"}),
        ({"reason": "x"}, "?dry_run=yes", {"parameter": "dry_run"}),
    ],
)
def test_bad_input_names_the_field(api, two_revisions, body, query, place):
    """Nothing is undone by a request that is not valid."""
    response = api("POST", f"revisions/2/undo{query}", body)

    (error,) = response.json()["errors"]
    assert response.status_code == 400
    assert place.items() <= error.items()
    assert Revision.objects.count() == 2


def test_who_may_not_undo(api, call, two_revisions):
    """A revision concerns all projects, so a key of some of them undoes none, and a reader does not either."""
    limited, reader = ManagementKeyFactory(projects=[ProjectFactory()]), ManagementKeyFactory(scopes=["revisions:read"])

    answers = [call("POST", "revisions/2/undo", {"reason": "x"}, key=key) for key in (limited, reader)]

    assert [(one.status_code, one.json()["code"]) for one in answers] == [
        (403, "key_limited_to_projects"),
        (403, "insufficient_scope"),
    ]
    assert api("POST", "revisions/9/undo", {"reason": "x"}).status_code == 404
