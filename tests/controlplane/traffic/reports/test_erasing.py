"""Nothing about the use of a deleted project is left when somebody asks for that."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.projects.models import Project
from controlplane.traffic.reports import erasing
from controlplane.traffic.usage.models import Checkpoint, DeniedRequest, UsageRow
from tests.factories import ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)

# Of columns that have no default.
VALUES: dict[str, Any] = {
    "DateField": lambda: timezone.now().date(),
    "DateTimeField": timezone.now,
    "BinaryField": lambda: b"",
}


def row_in(model, project_id: str):
    """Save a row of a table about a project, whatever other columns it has."""
    values = {"project_id": project_id}
    for field in model._meta.concrete_fields:
        if field.attname != "project_id" and not field.has_default() and field.get_internal_type() in VALUES:
            values[field.attname] = VALUES[field.get_internal_type()]()
        elif field.unique and field.get_internal_type() == "CharField" and field.attname != "project_id":
            values[field.attname] = project_id
    return model.objects.create(**values)


def deleted_project() -> str:
    project = ProjectFactory(slug="gone")
    project_id = project.pk
    with change(actor=Actor("ann", "api")) as tx:
        tx.delete(project)
    return project_id


def test_every_table_that_outlives_a_project_is_emptied_of_it(store) -> None:
    """And of it alone. A new table with the id of a project is found by that column."""
    gone, other = deleted_project(), ProjectFactory().pk
    models = erasing.outliving()
    assert len(models) >= 9
    for model in models:
        for project_id in (gone, other):
            row_in(model, project_id)
    for tag in (gone, other):
        Checkpoint.objects.create(tag=tag, counter="c", used=1, ends_us=1, last_us=1, stamp=1)

    call_command("erase_project", gone, reason="the tenant asked")

    for model in models:
        assert [row.project_id for row in model.objects.all()] == [other], model
    assert [kept.tag for kept in Checkpoint.objects.all()] == [other]
    entry = AuditEntry.objects.get(action="project.erase")
    assert (entry.object_id, entry.object_label, entry.reason) == (gone, "gone", "the tenant asked")
    assert entry.after["rows"] == {model._meta.model_name: 1 for model in [*models, Checkpoint]}


def test_more_rows_than_fit_into_a_transaction_go_too(store, monkeypatch) -> None:
    """In several steps."""
    monkeypatch.setattr(erasing, "DELETED_AT_ONCE", 2)
    gone, now = deleted_project(), timezone.now()
    for back in range(5):
        UsageRowFactory(project_id=gone, at=now - timedelta(minutes=back))

    assert erasing.erase(gone) == ({"usagerow": 5}, [])
    assert erasing.erase(gone) == ({}, [])


def test_a_project_that_exists_is_not_erased(store) -> None:
    """Nobody erases by a mistyped id what is still counted and paid for."""
    project = ProjectFactory()
    UsageRowFactory(project_id=project.pk)

    with pytest.raises(CommandError, match=r"still exists\. Delete it first"):
        call_command("erase_project", project.pk, reason="x")

    assert UsageRow.objects.count() == 1
    assert Project.objects.filter(pk=project.pk).exists()


@pytest.mark.parametrize(
    ("project", "reason", "message"),
    [
        ("", "x", "the audit has no deletion of a project with the id ''"),
        ("prj_unknown", "x", "the audit has no deletion of a project with the id 'prj_unknown'"),
        (None, " ", "--reason: must have 1 to 500 characters, got 0"),
        (None, "x" * 501, "--reason: must have 1 to 500 characters, got 501"),
        (None, "a\x1b[2Jb", "--reason: "),
    ],
    ids=["empty", "unknown", "no reason", "a long reason", "a reason that is not printable"],
)
def test_bad_input_erases_nothing(store, project, reason, message) -> None:
    """Rows without a project, such as those of requests that no project had, are not those of an empty id."""
    gone = deleted_project()
    row_in(DeniedRequest, "")
    UsageRowFactory(project_id=gone)

    with pytest.raises(CommandError, match=message.replace("(", r"\(")):
        call_command("erase_project", gone if project is None else project, reason=reason)

    assert (UsageRow.objects.count(), DeniedRequest.objects.count()) == (1, 1)
