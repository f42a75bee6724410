"""Changes of overrides. Admin, API and tasks call these functions with an open change."""

from datetime import datetime

from django.utils import timezone

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.overrides.models import Override


def save_override(tx: OpenChange, override: Override) -> None:
    """
    Save a new or changed override with its audit entry. Do nothing if nothing was changed.

    Raises:
        ValidationError: It has no holder, or two, or numbers that its limit does not allow.
    """
    former, now = Override.objects.filter(pk=override.pk).first(), timezone.now()
    # One whose end has come may not have been ended yet, and must not be in the way of the next.
    same = Override.objects.filter(
        limit=override.limit_id, token=override.token_id, project=override.project_id, partition=override.partition
    )
    for over in same.filter(ends_at__lte=now).exclude(pk=override.pk):
        end_override(tx, over, over.ends_at or now)
    if former is None:
        override.created_by = tx.actor.name[:200]
    override.full_clean()
    override.save()
    if former is None:
        tx.created(override)
        return
    if override.as_record() == former.as_record():
        return
    for kind, object_id in former.touches():  # the former holder, which may be another one
        tx.touch(kind, object_id)
    tx.updated(override, former.as_record())


def end_override(tx: OpenChange, override: Override, now: datetime) -> None:
    """End an override with its audit entry. The row is kept as history."""
    before = override.as_record()
    override.ended_at = now
    override.save(update_fields=["ended_at"])
    tx.record("override.end", override, before=before, after=override.as_record())


def end_overrides(tx: OpenChange, now: datetime) -> int:
    """End the overrides whose end has come, and return their number. Enforcers ignore them from their end on."""
    ended = Override.objects.filter(ends_at__lte=now).select_for_update(of=("self",))
    rows = list(ended.select_related("limit__policy", "token", "project"))
    for override in rows:
        end_override(tx, override, override.ends_at or now)
    return len(rows)
