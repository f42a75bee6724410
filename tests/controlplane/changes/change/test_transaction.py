import os
import subprocess
import sys
import time

import pytest
from django.db import connection, transaction
from django.db.models import RestrictedError

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change import transaction as changes
from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.models import OutboxEntry, Revision
from tests.factories import LimitFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_change_writes_rows_audit_and_outbox(actor):
    """Every change is one transaction: the row, who did it and why, and what has to be published."""
    policy = LimitFactory(name="minute").policy
    before = policy.as_record()

    with change(actor=actor, reason="Easter") as tx:
        policy.name = "Renamed"
        policy.save()
        tx.updated(policy, before)

    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.channel, entry.request_id, entry.reason) == ("ann", "api", "req-1", "Easter")
    assert (entry.action, entry.object_type, entry.object_id) == ("policy.update", "policy", policy.pk)
    assert (entry.before["version"], entry.after["version"]) == (1, 2)
    assert entry.after["name"] == "Renamed"
    assert list(OutboxEntry.objects.values_list("kind", "object_id")) == [("policy", policy.pk)]


def test_a_change_that_fails_leaves_nothing(actor):
    """Nothing is half done: an error in the block takes rows, audit and outbox back."""
    with pytest.raises(ZeroDivisionError), change(actor=actor) as tx:
        create_and_fail(tx)

    assert not Project.objects.exists()
    assert not AuditEntry.objects.exists()
    assert not OutboxEntry.objects.exists()


def create_and_fail(tx: OpenChange) -> None:
    tx.created(ProjectFactory())
    1 / 0  # noqa: B018


def test_a_change_is_published_before_the_caller_goes_on(actor, store, document):
    """A change is live at once: the revision is known after the block."""
    with change(actor=actor) as tx:
        project = ProjectFactory(slug="chat")
        tx.created(project)

    assert tx.revision == 1
    assert document(f"project:{project.pk}") == {
        "schema": 1,
        "id": project.pk,
        "slug": "chat",
        "active": True,
        "policy": None,
        "overrides": [],
    }


def test_a_store_that_is_away_delays_the_change_and_never_loses_it(actor, store, document):
    """Saving works without the store, and says that it is pending; what is pending is published later."""
    store.kill()

    with change(actor=actor) as tx:
        project = ProjectFactory()
        tx.created(project)

    assert tx.revision is None
    store.start()
    assert publisher.publish_pending() == 1
    assert document(f"project:{project.pk}")["slug"] == project.slug


def test_a_frozen_store_does_not_hold_a_change_up(actor, store):
    """A person who saves waits for a store that hangs, but not for long."""
    store.freeze()
    started = time.monotonic()

    with change(actor=actor) as tx:
        tx.created(ProjectFactory())

    assert tx.revision is None
    assert time.monotonic() - started < 1


def test_an_error_while_publishing_is_not_the_callers(actor, monkeypatch):
    """The change is committed: whatever goes wrong afterwards must not look as if it had failed."""
    monkeypatch.setattr(publisher, "publish_promptly", lambda: 1 / 0)

    with change(actor=actor) as tx:
        tx.created(ProjectFactory())

    assert tx.revision is None
    assert Project.objects.exists()
    assert OutboxEntry.objects.filter(revision=None).count() == 1


CRASH = """
import os, django
django.setup()
from controlplane.releases.publishing import publisher
from controlplane.changes.change.transaction import Actor, change
from tests.factories import ProjectFactory
publisher.publish_promptly = lambda: os._exit(17)
with change(actor=Actor("ann", "api")) as tx:
    tx.created(ProjectFactory(slug="survivor"))
"""


def test_a_crash_between_commit_and_publication_loses_nothing(store, document, settings):
    """The process dies after the commit: what it left in the outbox is published by the next one."""
    environment = {**os.environ, "DATABASE_URL": database_url(), "DJANGO_SETTINGS_MODULE": "tests.settings"}

    died = subprocess.run([sys.executable, "-c", CRASH], env=environment, cwd=settings.BASE_DIR, check=False)

    assert died.returncode == 17
    assert not Revision.objects.exists()
    assert publisher.publish_pending() == 1
    assert document(f"project:{Project.objects.get(slug='survivor').pk}")["slug"] == "survivor"


def database_url() -> str:
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return f"postgres://{connection.settings_dict['USER']}@127.0.0.1:{connection.settings_dict['PORT']}/{name}"


def test_a_change_inside_a_transaction_waits_for_its_end(actor, store):
    """Nothing is published that could still be taken back."""
    with pytest.raises(ZeroDivisionError):
        fail_after_a_change(actor)

    assert publisher.publish_pending() is None
    assert not Revision.objects.exists()


def fail_after_a_change(actor: Actor) -> None:
    with transaction.atomic():
        with change(actor=actor) as tx:
            tx.created(ProjectFactory())
        1 / 0  # noqa: B018


def test_a_changed_limit_moves_its_policys_version(actor):
    """A limit is part of its policy: who reads the policy sees that it changed."""
    limit = LimitFactory()
    before = limit.as_record()

    with change(actor=actor) as tx:
        limit.quota = 7
        limit.save()
        tx.updated(limit, before)

    assert Policy.objects.get().version == 2
    assert list(OutboxEntry.objects.values_list("kind", "object_id")) == [("policy", limit.policy_id)]


def test_a_renamed_limit_is_published_to_the_holders_of_its_overrides(actor):
    """Documents of tokens name the limit that they override."""
    override = OverrideFactory()
    limit = override.limit
    before = limit.as_record()

    with change(actor=actor) as tx:
        limit.name = "renamed"
        limit.save()
        tx.updated(limit, before)

    assert ("token", override.token.digest) in OutboxEntry.objects.values_list("kind", "object_id")


def test_a_deleted_project_takes_its_tokens_out_of_the_store(actor, store, document, token_document):
    """Deleting a project ends its tokens, everywhere."""
    token = TokenFactory(policy=PolicyFactory())
    with change(actor=actor) as tx:
        tx.created(token.project)
        tx.created(token)
    assert token_document(token.digest)["id"] == token.pk

    with change(actor=actor) as tx:
        tx.delete(token.project)

    assert tx.revision == 2
    assert token_document(token.digest) is None
    assert document(f"project:{token.project_id}") is None


def test_a_project_that_uses_its_own_policy_can_be_deleted(actor):
    """What it owns falls with it, also where it uses it."""
    project = ProjectFactory()
    policy = PolicyFactory(project=project)
    project.policy = policy
    project.save()
    TokenFactory(project=project, policy=policy)

    with change(actor=actor) as tx:
        tx.delete(project)

    assert (Project.objects.count(), Policy.objects.count(), Token.objects.count()) == (0, 0, 0)


def test_a_policy_in_use_is_not_deleted(actor):
    """Deleting a policy must not lift a limit unseen."""
    project = ProjectFactory(policy=PolicyFactory())

    with pytest.raises(RestrictedError), change(actor=actor) as tx:
        tx.delete(project.policy)

    assert Policy.objects.exists()
    assert not AuditEntry.objects.exists()


def test_a_deleted_policy_takes_its_limits_and_overrides_along(actor, store, document, token_document):
    """No document names a limit that is gone."""
    override = OverrideFactory()
    Token.objects.update(policy=None)  # a policy that somebody uses is not deleted
    with change(actor=actor) as tx:
        tx.created(override.limit.policy)
        tx.created(override)

    with change(actor=actor) as tx:
        tx.delete(override.limit.policy)

    assert (Limit.objects.count(), Override.objects.count()) == (0, 0)
    assert document(f"policy:{override.limit.policy_id}") is None
    assert token_document(override.token.digest)["overrides"] == []


def test_a_change_that_nobody_would_publish_is_not_made(monkeypatch):
    """It would otherwise wait for the next reconciliation, and nobody would notice."""
    monkeypatch.setattr(changes, "_publish", [])

    with pytest.raises(RuntimeError, match="not installed"), change(actor=Actor("test", "command")):
        ProjectFactory()

    assert not Project.objects.exists()
