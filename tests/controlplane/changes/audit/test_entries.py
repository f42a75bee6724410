"""Each audit entry names the project whose members may read it."""

from importlib import import_module
from types import SimpleNamespace

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.policies.actions import set_global_policy
from controlplane.objects.projects.models import Project
from tests.controlplane.conftest import ANN
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    ModelPriceFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return ProjectFactory(slug="chat")


def project_of(row) -> str:
    with change(actor=ANN) as tx:
        tx.created(row)
    return AuditEntry.objects.get(change=tx.id).project


def test_what_a_project_owns_names_it(project: Project):
    policy = PolicyFactory(project=project)
    limit = LimitFactory(policy=policy)
    project.policy = policy
    project.save()
    token = TokenFactory(project=project, policy=policy)
    rows = [
        *(project, policy, limit, token),
        OverrideFactory(limit=limit, token=token),
        OverrideFactory(limit=limit, token=None, project=project),
        ManagementKeyFactory(projects=[project]),
        MembershipFactory(project=project),
        Suspension.objects.create(within=project, name="session", value="abc", reason="loop", by="ann"),
    ]

    assert [project_of(row) for row in rows] == [project.pk] * len(rows)


def test_what_projects_share_names_none(project: Project):
    """Only operators read why something changed that concerns several projects."""
    shared = PolicyFactory()
    rows = [
        *(shared, LimitFactory(policy=shared), ModelPriceFactory()),
        *(ManagementKeyFactory(), ManagementKeyFactory(projects=[project, ProjectFactory()])),
        Suspension.objects.create(name="session", value="abc", reason="loop", by="ann"),
    ]

    assert [project_of(row) for row in rows] == [""] * len(rows)
    with change(actor=ANN) as tx:
        set_global_policy(tx, shared)
    assert AuditEntry.objects.get(change=tx.id).project == ""


def test_a_deleted_project_leaves_its_entries_with_its_id(project: Project):
    """Nobody is a member any more, so only operators read them."""
    membership, token, pk = MembershipFactory(project=project), TokenFactory(project=project), project.pk

    with change(actor=ANN) as tx:
        tx.delete(project)

    entries = AuditEntry.objects.filter(change=tx.id)
    assert set(entries.values_list("action", "project", "object_id")) == {
        ("project.delete", pk, pk),
        ("token.delete", pk, token.pk),
        ("membership.delete", pk, membership.pk),
    }


def test_a_key_that_loses_one_of_its_projects_names_none(project: Project):
    """Its entry names both, and the members of the other one must not read what was deleted."""
    ManagementKeyFactory(projects=[project, ProjectFactory(slug="other")])

    with change(actor=ANN) as tx:
        tx.delete(project)

    entry = AuditEntry.objects.get(action="managementkey.narrow")
    assert (entry.before["projects"], entry.after["projects"], entry.project) == (["chat", "other"], ["other"], "")


@pytest.fixture
def of_old(project: Project):
    """``of_old(kind, object_id, **record)``: an entry as an earlier version wrote it."""

    def write(kind: str, object_id: str, **record) -> str:
        values = {"actor": "ann", "channel": "admin", "action": f"{kind}.create", "object_label": "x"}
        return AuditEntry.objects.create(object_type=kind, object_id=object_id, after=record or None, **values).pk

    return write


def test_entries_of_before_get_their_project(project: Project, of_old):
    """As far as the record or the present rows say. What is unknown stays with operators."""
    token, policy = TokenFactory(project=project), PolicyFactory(project=project)
    known = [
        of_old("project", project.pk),
        of_old("token", "tok_gone", project=project.pk),
        of_old("token", token.pk, limit=None),
        of_old("policy", "pol_gone", project=project.pk),
        of_old("limit", "lim_gone", policy=policy.pk),
        of_old("override", "ovr_1", project=None, token=token.pk),
        of_old("override", "ovr_2", project=project.pk, token=None),
    ]
    unknown = [
        of_old("policy", "pol_shared", project=None),
        of_old("override", "ovr_3", project=None, token="tok_gone"),
        of_old("token", "tok_gone"),
        of_old("user", "1", username="bob"),
    ]
    migration = import_module("controlplane.objects.policies.migrations.0004_audit")
    apps = MigrationExecutor(connection).loader.project_state(("policies", "0004_audit")).apps

    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # a later migration refuses every change of an entry
            cursor.execute("ALTER TABLE policies_auditentry DISABLE TRIGGER sluicegate_keep_audit")
    migration.name_projects(apps, SimpleNamespace(connection=connection))

    entries = dict(AuditEntry.objects.values_list("pk", "project"))
    assert [entries[pk] for pk in known] == [project.pk] * len(known)
    assert [entries[pk] for pk in unknown] == [""] * len(unknown)
