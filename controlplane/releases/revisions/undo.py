"""
The undoing of one published change, as a new change.

Only what that change has changed is changed back, field by field, and only where it still is as that change left it. So
what was changed since stays, as do counters and revoked secrets.
"""

from collections.abc import Iterable

from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import OpenChange
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.entries import change_of, sentence
from controlplane.objects.policies.actions import lock_global_policy
from controlplane.releases.publishing.models import PublishedChange, Revision
from controlplane.releases.publishing.writing import write
from controlplane.releases.revisions.restoring import HANDLERS

# A revision with more was a change of very many tokens, or was published after a long outage.
MOST_ENTRIES = 1000
# So many sentences say why nothing is left to undo.
MOST_REASONS = 3


def entries_to_undo(entries: QuerySet[AuditEntry], revision: Revision, change: str = "") -> list[AuditEntry]:
    """
    Return those of the *entries* that a revision published, or one *change* in it, oldest first.

    Args:
        entries: The audit entries that the user may see.
    Raises:
        ValidationError: There are too many, or none, because the revision is of 0.2.0 or of the reconciler.
    """
    published = PublishedChange.objects.filter(revision=revision)
    ids = published.filter(change=change) if change else published
    found = list(entries.filter(change__in=ids.values("change")).order_by("id")[: MOST_ENTRIES + 1])
    if not found:
        raise ValidationError("The audit does not say what this revision changed, so it cannot be undone.")
    if len(found) > MOST_ENTRIES:
        raise ValidationError(f"It changed more than {MOST_ENTRIES:,} objects, so it cannot be undone as a whole.")
    return found


def locked(entries: QuerySet[AuditEntry], revision: Revision, change: str = "") -> list[AuditEntry]:
    """Return what :func:`entries_to_undo` returns, with the lock that a plan needs which is carried out."""
    lock_global_policy()  # before the policies, as every change of the global policy locks it first
    return entries_to_undo(entries, revision, change)


def plan(entries: Iterable[AuditEntry]) -> Change:
    """Return what an undo of these audit entries would do at present."""
    objects: list[ObjectChange] = []
    stays: list[str] = []
    entries = list(entries)
    coming: set[str] = set()
    made = change_of(entry for entry in entries if not entry.action.startswith("counters."))
    known = [one for one in made.merged.objects if one.kind in HANDLERS]
    for done in sorted(known, key=lambda one: list(HANDLERS).index(one.kind)):
        wanted, kept = HANDLERS[done.kind](done, coming)
        stays += kept
        if wanted is None:
            continue
        objects.append(wanted)
        if wanted.kind == "policy" and wanted.after is not None:
            slug, limits = wanted.after["slug"], wanted.after["limits"]
            coming |= {wanted.pk, *(f"{slug}/{limit['name']}" for limit in limits)}
    others = [entry for entry in entries if entry.object_type not in HANDLERS]
    stays += [f"{sentence(entry)} That is not undone here." for entry in others]
    return Change(tuple(objects), tuple(stays))


def apply(tx: OpenChange, found: Change, revision: Revision, seen: str) -> None:
    """
    Undo a published change within the open change *tx*, in which the plan was made.

    Args:
        seen: The digest of the plan that the user has confirmed.
    Raises:
        Changed: The plan is not what the user has seen, because somebody changed something meanwhile.
        ValidationError: A restored value breaks a rule, or there is nothing to undo.
    """
    if found.digest != seen:
        raise Changed(found)
    if not found.objects:
        raise ValidationError(" ".join(["Nothing of it is left to undo.", *found.stays[:MOST_REASONS]]))
    write(tx, found, "undo")
    PublishedChange.objects.create(change=tx.id, undoes=revision)


class Changed(Exception):
    """Raised if an undo would not do what the user has confirmed. ``plan`` is what it would do now."""

    def __init__(self, found: Change) -> None:
        super().__init__("The plan of the undo has changed.")
        self.plan = found
