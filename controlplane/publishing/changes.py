"""The one way to change what enforcers know: rows, audit and outbox in one transaction, published after the commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import models, transaction

from controlplane.policies.models import AuditEntry
from controlplane.projects.models import Versioned
from controlplane.publishing import publisher
from controlplane.publishing.models import OutboxEntry


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, through which door: "admin", "api", "command" or "task"."""

    name: str
    channel: str
    request_id: str = ""


@contextmanager
def change(*, actor: Actor, reason: str = "") -> Iterator["Change"]:
    """
    Make the block one change: all of it is committed, or none.

    Publishing follows the commit at once. When the block stands in a transaction of its caller's, both wait for that
    one's end. Read ``revision`` of what is yielded afterwards: a number, or None while the change is pending because
    the store is away; Celery then goes on trying.

    Raises:
        Whatever the block raises; nothing is changed then. A store that is away raises nothing.
    """
    tx = Change(actor, reason)
    with transaction.atomic():
        yield tx
        # robust: the change is committed whatever happens now, and the caller must not be told otherwise.
        transaction.on_commit(tx.publish, robust=True)


class Change:
    """An open change. Its ``revision`` is known after the block."""

    def __init__(self, actor: Actor, reason: str) -> None:
        self.actor = actor
        self.reason = reason
        self.revision: int | None = None
        self._touched: dict[tuple[str, str], int] = {}

    def created(self, obj: models.Model) -> None:
        """Record that *obj* is new."""
        self.record(f"{obj._meta.model_name}.create", obj, before=None, after=obj.as_record())

    def updated(self, obj: models.Model, before: dict[str, Any]) -> None:
        """Record that *obj* was saved; *before* is what ``as_record()`` returned when it was read."""
        self.record(f"{obj._meta.model_name}.update", obj, before=before, after=obj.as_record())

    def delete(self, obj: models.Model) -> None:
        """
        Delete *obj* and what falls with it, and record that.

        Raises:
            RestrictedError: A project or token still has this policy.
        """
        for dependent in obj.dependents():
            self._touch_all(dependent)
        self.record(f"{obj._meta.model_name}.delete", obj, before=obj.as_record(), after=None)
        obj.delete()

    def record(
        self, action: str, obj: models.Model, *, before: dict[str, Any] | None, after: dict[str, Any] | None
    ) -> None:
        """
        Write the audit entry, and the outbox entries of what *obj* touches; its version, or its policy's, moves.

        A deletion is recorded while the row is still there (``delete()`` does both).
        """
        self._advance(obj, before, after)
        AuditEntry.objects.create(
            actor=self.actor.name[:200],
            channel=self.actor.channel,
            action=action,
            object_type=obj._meta.model_name,
            object_id=obj.pk,
            object_label=str(obj)[:300],
            before=before,
            after=after,
            reason=self.reason[:500],
            request_id=self.actor.request_id[:128],
        )
        self._touch_all(obj)
        if (before or {}).get("is_global", False) != (after or {}).get("is_global", False):
            self.touch("global")
        if before and after and _limit_names(before) != _limit_names(after):
            # Overrides name their limit in the documents of tokens and projects.
            for dependent in obj.dependents():
                self._touch_all(dependent)

    def touch(self, kind: str, object_id: str = "") -> None:
        """Ask for the object's present state to be published; asking twice in one change is asking once."""
        if (kind, object_id) not in self._touched:
            entry = OutboxEntry.objects.create(
                kind=kind, object_id=object_id, by=self.actor.name[:200], channel=self.actor.channel
            )
            self._touched[kind, object_id] = entry.pk

    def publish(self) -> None:
        """Publish what was committed, if the store answers in time, and remember the revision that carries it."""
        if self._touched:
            publisher.publish_promptly()
            self.revision = publisher.revision_of(self._touched.values())

    def _touch_all(self, obj: models.Model) -> None:
        for kind, object_id in obj.touches():
            self.touch(kind, object_id)

    @staticmethod
    def _advance(obj: models.Model, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        whole = getattr(obj, "whole", obj)
        if isinstance(whole, Versioned) and (whole is not obj or (before and after)):
            whole.advance()
        if after and "version" in after:
            after["version"] = obj.version


def _limit_names(record: dict[str, Any]) -> list[str]:
    """Name the limits that the record of a policy, or of one limit, speaks of."""
    if "limits" in record:
        return [limit["name"] for limit in record["limits"]]
    return [record["name"]] if "algorithm" in record else []
