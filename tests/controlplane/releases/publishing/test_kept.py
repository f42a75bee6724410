"""The documents of earlier revisions are kept, once for each time that they changed."""

from datetime import timedelta
from importlib import import_module

import pytest
from django.apps import apps
from django.utils import timezone

from controlplane.changes.change.transaction import change
from controlplane.objects.policies.actions import replace_limits
from controlplane.objects.projects.actions import issue_token, revoke_token
from controlplane.releases.publishing import kept, publisher
from controlplane.releases.publishing.models import PublishedDocument, Revision
from tests.factories import LimitFactory, OverrideFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def token(store, actor):
    """A published token under a policy with the quota 100."""
    limit = LimitFactory(quota=100, policy__slug="free", name="per-minute")
    project = ProjectFactory(slug="chat")
    with change(actor=actor) as tx:
        tx.created(limit.policy)
        tx.created(project)
        issued, _ = issue_token(tx, project=project, name="ci", policy=limit.policy)
    return issued


def quota_at(token, number):
    """The quota of the only limit in the policy's document that was in force at a revision."""
    (row,) = kept.rows_at([f"policy:{token.policy_id}"], number)
    return row.document["limits"][0]["quota"]


def test_each_revision_has_its_quota(token, actor):
    """Also after two later changes."""
    first = publisher.last_revision()
    numbers = [first]
    for quota in (20, 5):
        with change(actor=actor) as tx:
            before = token.policy.as_record()
            replace_limits(tx, token.policy, [token.policy.limits.get().as_value(quota=quota)])
            tx.updated(token.policy, before)
        numbers.append(tx.revision)

    assert [quota_at(token, number) for number in numbers] == [100, 20, 5]


def test_the_documents_of_tokens_are_kept_with_their_overrides(token, actor):
    """The digest is in none of them."""
    first = publisher.last_revision()
    with change(actor=actor) as tx:
        tx.created(OverrideFactory(limit=token.policy.limits.get(), token=token, quota=60))
    with change(actor=actor) as tx:
        revoke_token(tx, token)

    at = [
        kept.rows_at([f"token:{token.pk}"], number).get().document for number in (first, tx.revision - 1, tx.revision)
    ]

    assert [[one["quota"] for one in document["overrides"]] for document in at] == [[], [60], [60]]
    assert [document["revoked"] for document in at] == [False, False, True]
    assert token.digest not in str(at)


def test_a_full_publication_keeps_only_what_changed(token):
    """The store is refilled after each loss, and the documents are the same."""
    before = PublishedDocument.objects.count()
    publisher.publish_all()

    assert PublishedDocument.objects.count() == before


def test_a_deleted_document_is_kept_as_none(token, actor):
    """What was in force before is still known."""
    first = publisher.last_revision()
    name = f"project:{token.project_id}"
    with change(actor=actor) as tx:
        tx.delete(token.project)

    assert kept.rows_at([name], first).get().document["slug"] == "chat"
    assert [row.document for row in kept.after([name], first)] == [None]


def test_documents_are_pruned_90_days_after_they_were_replaced(token, actor):
    """The present one stays, however old it is."""
    name = f"policy:{token.policy_id}"
    with change(actor=actor) as tx:
        before = token.policy.as_record()
        replace_limits(tx, token.policy, [token.policy.limits.get().as_value(quota=20)])
        tx.updated(token.policy, before)
    replaced_at = Revision.objects.get(pk=tx.revision).published_at

    kept.prune(replaced_at + timedelta(days=90))
    assert kept.rows_at([name], tx.revision - 1).exists()
    kept.prune(replaced_at + timedelta(days=90, seconds=1))
    assert not kept.rows_at([name], tx.revision - 1).exists()
    assert kept.rows_at([name]).get().document["limits"][0]["quota"] == 20


def test_nothing_is_pruned_before_the_first_revision(db):
    """An empty database has nothing to delete."""
    assert kept.prune(timezone.now()) == 0


def test_an_upgrade_keeps_the_documents_that_revisions_have(db):
    """Each once for each time that it became another one."""
    for number, quota in enumerate((5, 5, 9), start=1):
        documents = {"policy:p": {"quota": quota}, "global": {"policy": None}}
        Revision.objects.create(number=number, changes={"documents": documents})
    migration = import_module("controlplane.releases.publishing.migrations.0002_history")

    migration.fill(apps, None)

    rows = PublishedDocument.objects.order_by("revision", "name").values_list("name", "revision", "document")
    assert list(rows) == [
        ("global", 1, {"policy": None}),
        ("policy:p", 1, {"quota": 5}),
        ("policy:p", 3, {"quota": 9}),
    ]
