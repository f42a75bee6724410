"""What a management key reaches is a column of its own, and no deletion makes it reach more."""

import threading
import time
from functools import partial

import pytest
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import change
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Project
from controlplane.web.restkit.authentication import Access
from tests.controlplane.conftest import ANN, at_once
from tests.factories import ManagementKeyFactory, OverrideFactory, PolicyFactory, ProjectFactory, TokenFactory
from tests.scale import scale

SCOPES = ["projects:read", "projects:write", "tokens:write", "audit:read"]


def audited(key: ManagementKey) -> list[tuple[str, list[str]]]:
    entries = AuditEntry.objects.filter(object_id=key.pk).order_by("id")
    return [(entry.action, entry.after["projects"]) for entry in entries]


def delete_together(web, key: ManagementKey, slugs: list[str]) -> list[int]:
    """Send both deletions, and on PostgreSQL let none end before the other has begun."""
    calls = [partial(web, "DELETE", f"projects/{slug}", key=key) for slug in slugs]
    if connection.vendor != "postgresql":
        return [answer.status_code for answer in at_once(calls)]
    answers: list[int] = []
    with transaction.atomic(), connection.cursor() as cursor:
        # Rows can be read and locked, and none can be deleted, until the end of this transaction.
        cursor.execute("LOCK TABLE projects_project IN SHARE MODE")
        sender = threading.Thread(target=lambda: answers.extend(a.status_code for a in at_once(calls)))
        sender.start()
        waiting, deadline = 0, time.monotonic() + 20
        while waiting < len(calls) and time.monotonic() < deadline:
            cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
            waiting = cursor.fetchone()[0]
    sender.join()
    assert waiting == len(calls), "the deletions did not overlap"
    return answers


@pytest.mark.proof
@pytest.mark.parametrize("by", ["another key", "the key itself"])
def test_two_deletions_at_once_leave_a_key_of_nothing(web, by):
    """The last two projects go at the same moment: each deletion would still count the project of the other."""
    for _ in range(scale(2, 25)):
        projects = [ProjectFactory(), ProjectFactory()]
        limited = ManagementKeyFactory(scopes=SCOPES, projects=projects)
        deleting = limited if by == "the key itself" else ManagementKeyFactory()

        delete_together(web, deleting, [project.slug for project in projects])

        for _ in range(2):  # whatever the first one remembers
            assert web("GET", "audit", key=limited).status_code in (401, 403)
        assert web("POST", "projects", {"slug": "mine", "name": "Mine"}, key=limited).status_code in (401, 403)
        limited.refresh_from_db()
        assert (limited.all_projects, limited.status) == (False, "revoked")
        assert audited(limited)[-1] == ("managementkey.revoke", [])


@pytest.mark.django_db(transaction=True)
def test_narrowing_and_revoking_by_deletion_are_audited(api, call):
    """The audit of the key says when it lost a project, and by whom."""
    projects = [ProjectFactory(slug="a"), ProjectFactory(slug="b")]
    limited = ManagementKeyFactory(projects=projects)

    api("DELETE", "projects/a", sluicegate_reason="moved")
    assert call("GET", "projects/b", key=limited).status_code == 200
    api("DELETE", "projects/b")

    assert audited(limited) == [("managementkey.narrow", ["b"]), ("managementkey.revoke", [])]
    narrowed = AuditEntry.objects.get(action="managementkey.narrow")
    assert (narrowed.before["projects"], narrowed.actor, narrowed.reason) == (["a", "b"], "ann", "moved")
    assert call("GET", "projects", key=limited).status_code == 401


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["projects", "policies", "global", "overrides", "instances", "usage", "audit"])
def test_a_key_whose_projects_vanished_reaches_nothing(call, path):
    """Rows that something else deleted: the key is not revoked, and every address refuses it."""
    limited = ManagementKeyFactory(projects=[ProjectFactory()])
    Project.objects.all().delete()

    response = call("GET", path, key=limited)

    assert (response.status_code, response.json()["code"]) == (403, "key_limited_to_projects")
    assert response.json()["detail"] == "Every project to which this key was limited is deleted."


def by_change(chosen) -> None:
    with change(actor=ANN) as tx:
        for project in chosen:
            tx.delete(project)


def by_sql(chosen) -> None:
    with connection.cursor() as cursor:
        for project in chosen:
            cursor.execute("DELETE FROM projects_managementkey_projects WHERE project_id = %s", [project.pk])


DELETIONS = {
    "change": by_change,
    "each row": lambda chosen: [project.delete() for project in chosen],
    "query": lambda chosen: chosen.delete(),
    "links": lambda chosen: ManagementKey.projects.through.objects.filter(project__in=chosen).delete(),
    "sql": by_sql,
}


def visible(key: ManagementKey) -> set[str]:
    """Return the ids of everything that the key sees now."""
    access = Access.of(ManagementKey.objects.get(pk=key.pk))
    rows = [access.projects(), access.tokens(), access.policies(), access.overrides(), access.limits()]
    return {pk for found in rows for pk in found.values_list("pk", flat=True)} | {
        f"owns {project.pk}" for project in Project.objects.all() if access.owns(project.pk)
    }


@pytest.mark.proof
@pytest.mark.django_db
@settings(max_examples=scale(10, 25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(DELETIONS)), st.sets(st.integers(0, 3), min_size=1)), max_size=4))
def test_no_sequence_of_deletions_widens_access(steps):
    """However rows vanish, a limited key sees no more than before, and owns nothing new."""
    projects = [ProjectFactory() for _ in range(4)]
    for project in projects:
        PolicyFactory(project=project)
    OverrideFactory(token=TokenFactory(project=projects[0]))
    limited = ManagementKeyFactory(projects=projects[:2])
    before = visible(limited)
    for road, numbers in steps:
        DELETIONS[road](Project.objects.filter(pk__in=[projects[number].pk for number in numbers]))
        after = visible(limited)
        assert after <= before
        before = after


RELEASED = [("projects", "0002_partition_cap")]


def migrate(targets=None) -> MigrationExecutor:
    """Migrate to *targets*, or to what is the newest."""
    executor = MigrationExecutor(connection)
    executor.migrate(targets or executor.loader.graph.leaf_nodes())
    return executor


def released_key(apps, name: str, projects=(), created_with=None):
    """A key as version 0.2.0 saved it, with the audit of its creation unless *created_with* is None."""
    key = apps.get_model("projects", "ManagementKey").objects.create(name=name, digest=name, prefix="sg_mgmt_abcd")
    key.projects.set(projects)
    if created_with is not None:
        apps.get_model("policies", "AuditEntry").objects.create(
            actor="ann",
            channel="admin",
            action="managementkey.create",
            object_type="managementkey",
            object_id=key.pk,
            object_label=name,
            after={"id": key.pk, "projects": created_with},
        )
    return key


@pytest.mark.django_db(transaction=True)
def test_neither_way_between_the_versions_widens_a_key(capsys):
    """Back to one that takes a key without projects for one of all projects, and forth from it."""
    lost = ManagementKeyFactory(all_projects=False)
    kept = ManagementKeyFactory(projects=[ProjectFactory()]), ManagementKeyFactory()
    executor = migrate(RELEASED)
    try:
        apps = executor.loader.project_state([*RELEASED, ("policies", "0003_columns")]).apps
        what_would_widen_is_revoked(apps, lost, kept)
        keys_of_that_version(apps)
        capsys.readouterr()
    finally:
        migrate()
    only_those_created_without_projects_are_global(capsys.readouterr().out)


def what_would_widen_is_revoked(apps, lost, kept):
    """Audited, and no other key is. Afterwards the database is empty again."""
    old, audit = apps.get_model("projects", "ManagementKey"), apps.get_model("policies", "AuditEntry")

    assert old.objects.get(pk=lost.pk).revoked_at
    assert list(audit.objects.values_list("object_id", "action")) == [(lost.pk, "managementkey.revoke")]
    assert not old.objects.filter(pk__in=[key.pk for key in kept]).exclude(revoked_at=None).exists()
    for model in (old, audit):
        model.objects.all().delete()


def keys_of_that_version(apps):
    project = apps.get_model("projects", "Project").objects.create(slug="chat", name="Chat")
    released_key(apps, "global", created_with=[])
    released_key(apps, "limited", [project], created_with=["chat"])
    released_key(apps, "widened", created_with=["gone"])
    released_key(apps, "unaudited")
    released_key(apps, "narrowed-by-hand", [project], created_with=[])


def only_those_created_without_projects_are_global(printed):
    """A key without projects may have lost them. Only the audit of its creation proves that it never had any."""
    assert list(ManagementKey.objects.filter(all_projects=True).values_list("name", flat=True)) == ["global"]
    told = {entry.object_label.split()[0]: entry for entry in AuditEntry.objects.filter(action="managementkey.limit")}
    for name in ("limited", "widened", "unaudited", "narrowed-by-hand"):
        assert f"The management key {name!r}" in printed
        assert told.pop(name).after["all_projects"] is False
    assert "'widened' (sg_mgmt_abcd…" in printed
    assert "limited to no project, so REST refuses it" in printed
    assert not told
    assert "'global'" not in printed
