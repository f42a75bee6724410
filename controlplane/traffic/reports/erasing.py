"""Erasing what is kept about the use of a project that was deleted."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db.models import ForeignKey, Model, QuerySet

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.transactions import RowsLeft, delete_in_pieces
from controlplane.traffic.usage.models import Checkpoint

ERASED = "project.erase"
DELETED_AT_ONCE = 1_000


class ErasedProject:
    """A project that does not exist any more, as a change records that its usage was erased."""

    class _meta:
        model_name = "project"

    def __init__(self, project_id: str, name: str) -> None:
        self.pk, self.name = project_id, name

    def __str__(self) -> str:
        return self.name or self.pk

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers do not know a deleted project."""
        yield from ()


def rows_of(project_id: str) -> list[QuerySet[Any]]:
    """Return the rows of each table that names a project without belonging to it, so that they outlive it."""
    if not project_id:
        raise ValueError("project_id: must not be empty.")
    rows = [model._default_manager.filter(project_id=project_id) for model in outliving()]
    return [*rows, Checkpoint.objects.filter(tag=project_id)]


def outliving() -> list[type[Model]]:
    """Return the models that have the id of a project as a plain column."""
    return [
        model
        for model in apps.get_models()
        for field in model._meta.concrete_fields
        if field.attname == "project_id" and not isinstance(field, ForeignKey)
    ]


def erase(project_id: str) -> tuple[dict[str, int], list[str]]:
    """
    Delete all rows of a project's usage.

    Returns:
        How many rows were deleted by the name of their model, and a sentence for each model of which some stay.

    It may be repeated. Usage that still waits in the store is counted afterwards, so repeat it once that is drained.
    """
    deleted: Counter[str] = Counter()
    left = []
    for rows in rows_of(project_id):
        try:
            number = delete_in_pieces(rows, DELETED_AT_ONCE)
        except RowsLeft as exc:
            number = exc.deleted
            left.append(str(exc))
        if number:
            deleted[rows.model._meta.model_name or ""] += number
    return dict(deleted), left


def note(tx: OpenChange, project: ErasedProject, deleted: dict[str, int]) -> None:
    """Record in the audit how many rows were deleted."""
    tx.record(ERASED, project, before=None, after={"rows": deleted})  # type: ignore[arg-type]
