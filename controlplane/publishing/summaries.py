"""What a revision changed, in words, from the audit entries of the changes that it contains."""

from collections import defaultdict
from collections.abc import Iterable

from django.db.models import Count, F, Window
from django.db.models.functions import RowNumber

from controlplane.policies.models import AuditEntry
from controlplane.publishing.models import Revision

# Of one revision. The number of those that are left out is shown.
ENTRIES_SHOWN = 100
# Of one revision, in a list. There are more only if the store was away for long.
CHANGES_READ = 100

VERBS = {
    "create": "created",
    "update": "changed",
    "delete": "deleted",
    "revoke": "revoked",
    "rotate": "rotated",
    "expire": "expired",
    "rollback": "rolled back",
    "reset": "reset",
}


def change_ids(revision: Revision) -> list[str]:
    """Return the ids of the changes in a revision. Revisions of 0.2.0 have none."""
    return revision.changes.get("ids", [])


def entries_of(revision: Revision) -> tuple[list[AuditEntry], int]:
    """Return the first audit entries of a revision, oldest first, and the number of all."""
    entries = AuditEntry.objects.filter(change__in=change_ids(revision)).order_by("at", "id")
    return list(entries[:ENTRIES_SHOWN]), entries.count()


def first_entries(revisions: Iterable[Revision], most: int) -> dict[int, list[AuditEntry]]:
    """
    Return the first audit entries of each revision by its number, at most *most* of each change.

    Their attribute ``of_change`` is the number of entries of their change.
    """
    owners = {change: revision.number for revision in revisions for change in change_ids(revision)[:CHANGES_READ]}
    windows = {
        "position": Window(RowNumber(), partition_by=F("change"), order_by=("at", "id")),
        "of_change": Window(Count("*"), partition_by=F("change")),
    }
    # Without "before" and "after", which may be long.
    few = AuditEntry.objects.filter(change__in=owners).defer("before", "after").annotate(**windows)
    found: dict[int, list[AuditEntry]] = defaultdict(list)
    for entry in few.filter(position__lte=most).order_by("at", "id"):
        found[owners[entry.change]].append(entry)
    return found


def in_words(entry: AuditEntry) -> str:
    """Return an audit entry in words, such as "policy free changed"."""
    kind, _, deed = entry.action.partition(".")
    if entry.action == "global.set":
        return f"policy {entry.object_label} set or unset as the global policy"
    return f"{kind} {entry.object_label} {VERBS.get(deed, deed)}"
