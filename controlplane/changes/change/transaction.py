"""
The only way to change what enforcers know.

The rows, the audit and the outbox are written in one transaction, and are published after the commit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import batched, groupby
from typing import Any, Protocol

from django.core.exceptions import ValidationError
from django.db import transaction

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.outbox import OutboxEntry
from controlplane.core.ids import new_id
from controlplane.core.text import PRINTABLE
from controlplane.core.versions import Versioned

# Rows that one statement writes.
AT_ONCE = 1000

Record = dict[str, Any] | None
Publish = Callable[[str], int | None]


class ModelOptions(Protocol):
    """What a change asks of the options of a model."""

    @property
    def model_name(self) -> str | None: ...


class Audited(Protocol):
    """A row whose changes the audit records, or an object in its place."""

    @property
    def pk(self) -> str | int: ...
    @property
    def _meta(self) -> ModelOptions: ...
    def as_record(self) -> dict[str, object]: ...
    def touches(self) -> Iterable[tuple[str, str]]: ...
    def dependents(self) -> "Iterable[Audited]": ...
    def delete(self) -> object: ...


_publish: list[Publish] = []


def publish_after_commit(publish: Publish) -> None:
    """Let *publish* publish each change, by its id, and return the revision, or None if the store is unavailable."""
    _publish[:] = [publish]


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of a change, and its channel, which is "admin", "api", "command" or "task"."""

    name: str
    channel: str
    request_id: str = ""


class BrokenRules(Exception):
    """Raised if some of many rows break a rule of their model. ``by_place`` has a ValidationError for each of them."""

    def __init__(self, by_place: dict[int, ValidationError]) -> None:
        super().__init__(f"{len(by_place)} rows break a rule")
        self.by_place = by_place


@contextmanager
def change(*, actor: Actor, reason: str = "") -> Iterator["OpenChange"]:
    """
    Run the block as one change, yield that change, commit all of it or nothing, and then publish it.

    The change is published right after the commit. If the caller has an open transaction, both happen at its end.
    Afterwards ``revision`` of the yielded object is the number of the publication. It is None while the change is
    pending because the store is unavailable, and Celery then retries.

    Raises:
        ValidationError: The reason has characters that are not printable. The block does not run.
        Every exception of the block. Nothing is changed then. An unavailable store raises nothing.
    """
    try:
        PRINTABLE(reason)
    except ValidationError as exc:
        raise ValidationError({"reason": exc}) from exc
    if not _publish:
        raise RuntimeError("Nothing publishes changes, because the app of publishing is not installed.")
    tx = OpenChange(actor, reason)
    with transaction.atomic():
        yield tx
        # robust, because the change is already committed, and an exception would tell the caller that it failed.
        transaction.on_commit(tx.publish, robust=True)


class OpenChange:
    """
    An open change. Its ``revision`` is set after the block.

    Its ``id`` is in each of its audit and outbox entries, so that a revision leads to what was changed.
    """

    def __init__(self, actor: Actor, reason: str) -> None:
        self.id = new_id("chg")
        self.actor = actor
        self.reason = reason
        self.revision: int | None = None
        self._recorded = False
        self._touched: set[tuple[str, str]] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was recorded or has to be published, because every value is as it was."""
        return not (self._recorded or self._touched)

    @property
    def touched(self) -> frozenset[tuple[str, str]]:
        """The objects to be published, by kind and id as the outbox names them."""
        return frozenset(self._touched)

    @property
    def outcome(self) -> str:
        """The outcome of a committed change, in a sentence."""
        if self.is_empty:
            return "Nothing was changed."
        if self.revision is None:
            return "Saved. The change will be published when the store is available."
        return f"Published as revision {self.revision}."

    def created(self, obj: Audited) -> None:
        """Write the audit entry and the outbox entries for the new row *obj*."""
        self.record(f"{obj._meta.model_name}.create", obj, before=None, after=obj.as_record())

    def updated(self, obj: Audited, before: dict[str, object]) -> None:
        """
        Write the audit entry and the outbox entries for the changed row *obj*. *before* is the value of ``as_record()``
        before the change.
        """
        self.record(f"{obj._meta.model_name}.update", obj, before=before, after=obj.as_record())

    def delete(self, obj: Audited) -> None:
        """
        Delete *obj* and the rows that depend on it, and write the audit entry of each and the outbox entries.

        So are the rows that stay and lose something, such as a management key that is limited to the deleted project.

        Raises:
            RestrictedError: A project or token still uses this policy.
        """
        narrowed = [(row, row.as_record()) for row in (obj.narrowed() if hasattr(obj, "narrowed") else ())]
        self.record(f"{obj._meta.model_name}.delete", obj, before=obj.as_record(), after=None)
        self.record_deleted(obj.dependents())
        obj.delete()
        for row, before in narrowed:
            self.record(row.narrow(), row, before=before, after=row.as_record())

    def record(self, action: str, obj: Audited, *, before: Record, after: Record) -> None:
        """
        Write the audit entry and the outbox entries for *obj*, and increase its version or that of its policy.

        A deletion is recorded before the row is deleted, as ``delete()`` does.
        """
        self._advance(obj, before, after)
        self._recorded = True
        self._entry(action, obj, before, after).save()
        self._touch_all(obj)
        if (before or {}).get("is_global", False) != (after or {}).get("is_global", False):
            self.touch("global")
        if before and after and _limit_names(before) != _limit_names(after):
            # The documents of tokens and projects contain overrides, which name their limit.
            for dependent in obj.dependents():
                self._touch_all(dependent)

    def record_many(self, action: str, changed: Iterable[tuple[Audited, Record, Record]]) -> None:
        """
        Write what ``record()`` writes for each (object, before, after), with few statements.

        The objects must have no version, as tokens and management keys have none, or must be about to be deleted.
        """
        for some in batched(changed, AT_ONCE):
            self._recorded = True
            AuditEntry.objects.bulk_create([self._entry(action, *one) for one in some])
            self._touch(pair for obj, _, _ in some for pair in obj.touches())

    def record_deleted(self, rows: Iterable[Audited]) -> None:
        """Write what ``record()`` writes for rows that the caller deletes next, with few statements."""
        for name, some in groupby(rows, lambda row: row._meta.model_name):
            self.record_many(f"{name}.delete", ((row, row.as_record(), None) for row in some))

    def touch(self, kind: str, object_id: str = "") -> None:
        """Add an outbox entry, once for a change, so that the present state of the object is published."""
        self._touch([(kind, object_id)])

    def publish(self) -> None:
        """Publish the committed change if the store responds in time, and set the revision that contains it."""
        if self._touched:
            (publish,) = _publish
            self.revision = publish(self.id)

    def _entry(self, action: str, obj: Audited, before: Record, after: Record) -> AuditEntry:
        return AuditEntry(
            actor=self.actor.name[:200],
            channel=self.actor.channel,
            action=action,
            object_type=obj._meta.model_name or "",
            object_id=obj.pk,
            object_label=str(obj)[:300],
            before=before,
            after=after,
            reason=self.reason[:500],
            request_id=self.actor.request_id[:128],
            change=self.id,
            project=_project_of(obj, before, after),
        )

    def _touch(self, pairs: Iterable[tuple[str, str]]) -> None:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._touched]
        author = {"by": self.actor.name[:200], "channel": self.actor.channel, "change": self.id}
        OutboxEntry.objects.bulk_create([OutboxEntry(kind=kind, object_id=pk, **author) for kind, pk in new])
        self._touched.update(new)

    def _touch_all(self, obj: Audited) -> None:
        self._touch(obj.touches())

    @staticmethod
    def _advance(obj: Audited, before: Record, after: Record) -> None:
        whole = getattr(obj, "whole", obj)
        if isinstance(whole, Versioned) and (whole is not obj or (before and after)):
            whole.advance()
        if after and "version" in after and isinstance(obj, Versioned):
            after["version"] = obj.version


def _project_of(obj: Audited, before: Record, after: Record) -> str:
    """Return the id of the project whose members may read the audit of *obj*, or an empty string if only operators."""
    if hasattr(obj, "audited_project"):
        return obj.audited_project(before, after) or ""
    # A value that is suspended in one project only has an owner.
    return getattr(obj, "project_id", None) or getattr(obj, "owner_id", None) or ""


def _limit_names(record: dict[str, Any]) -> list[str]:
    """Return the names of the limits in the record of a policy or of one limit."""
    if "limits" in record:
        return [limit["name"] for limit in record["limits"]]
    return [record["name"]] if "algorithm" in record else []
