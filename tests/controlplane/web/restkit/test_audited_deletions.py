"""Whatever a deletion takes along is in the audit too, under its own id and with its last values."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.projects.actions import delete_tokens
from controlplane.objects.projects.models import Token
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db


def deletions() -> dict[str, str]:
    """Return the action by the id of each object that the audit calls deleted."""
    entries = AuditEntry.objects.filter(after__isnull=True).order_by("id")
    assert all(entry.before["id"] == entry.object_id for entry in entries)
    return dict(entries.values_list("object_id", "action"))


def test_a_project_with_all_that_it_has(api):
    """Its tokens, its policies, and the overrides of both and of itself."""
    project = ProjectFactory(slug="chat")
    shared, own = LimitFactory(), LimitFactory(policy=PolicyFactory(project=project))
    token, other = TokenFactory(project=project), TokenFactory(project=project, policy=own.policy)
    overrides = [
        OverrideFactory(limit=shared, token=token),
        OverrideFactory(limit=own, token=other),
        OverrideFactory(limit=own, for_project=True, project=project),
    ]
    OverrideFactory(limit=shared)

    assert api("DELETE", "projects/chat").status_code == 204

    assert deletions() == {
        project.pk: "project.delete",
        token.pk: "token.delete",
        other.pk: "token.delete",
        own.policy_id: "policy.delete",
        **{override.pk: "override.delete" for override in overrides},
    }
    assert set(AuditEntry.objects.values_list("actor", "channel")) == {("ann", "api")}


def test_a_policy_with_its_overrides(api):
    """Nobody else removes them."""
    override = OverrideFactory(limit__policy=PolicyFactory(slug="free"))
    Token.objects.update(policy=None)

    assert api("DELETE", "policies/free").status_code == 204

    assert deletions() == {override.limit.policy_id: "policy.delete", override.pk: "override.delete"}


def test_a_limit_with_its_overrides(api):
    """A limit that gets another name is another limit."""
    override = OverrideFactory(limit__policy=PolicyFactory(slug="free"), limit__name="minute")
    limit = {"name": "renamed", "algorithm": "fixed_window", "quota": 1, "window_seconds": 60}

    assert api("PATCH", "policies/free", {"limits": [limit]}).status_code == 200

    assert deletions() == {override.pk: "override.delete"}


def test_a_token_with_its_overrides(api):
    """The entry names the limit and the quota."""
    override = OverrideFactory(limit=LimitFactory(policy=PolicyFactory(slug="free"), name="minute"), quota=7)

    assert api("DELETE", f"tokens/{override.token_id}").status_code == 204

    assert deletions() == {override.token_id: "token.delete", override.pk: "override.delete"}
    before = AuditEntry.objects.get(object_id=override.pk).before
    assert (before["limit"], before["token"], before["quota"]) == ("free/minute", override.token_id, 7)


def test_many_tokens_with_their_overrides(store):
    """As the list of the admin deletes them."""
    overrides = [OverrideFactory() for _ in range(2)]

    with change(actor=Actor("ann", "admin")) as tx:
        delete_tokens(tx, Token.objects.all())

    assert deletions() == {
        **{override.token_id: "token.delete" for override in overrides},
        **{override.pk: "override.delete" for override in overrides},
    }


@pytest.mark.parametrize("tokens", [1, 50])
def test_a_deletion_needs_few_statements(api, tokens):
    """However much it takes along."""
    limit, project = LimitFactory(), ProjectFactory(slug="chat")
    for _ in range(tokens):
        OverrideFactory(limit=limit, token=TokenFactory(project=project, policy=limit.policy))

    with CaptureQueriesContext(connection) as done:
        assert api("DELETE", "projects/chat").status_code == 204

    assert len(done) < 50
