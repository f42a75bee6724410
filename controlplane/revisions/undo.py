"""
The undoing of one published change, as a new change.

Only what that change has changed is changed back, field by field, and only where it still is as that change left it. So
what was changed since stays, as do counters and revoked secrets.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from controlplane.changes.differences import Difference, differences
from controlplane.changes.entries import sentence
from controlplane.changes.names import Names
from controlplane.changes.words import Line, lines
from controlplane.policies.actions import lock_global_policy
from controlplane.policies.models import AuditEntry
from controlplane.publishing.changes import OpenChange
from controlplane.publishing.models import PublishedChange, Revision
from controlplane.revisions.restoring import HANDLERS, Kept, Restored, Span

# A revision with more was a change of very many tokens, or was published after a long outage.
MOST_ENTRIES = 1000
# So many sentences say why nothing is left to undo.
MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One object that is changed back, with what changes in words."""

    span: Span
    restored: Restored
    lines: list[Line]

    @property
    def differences(self) -> list[Difference]:
        """What changes, field by field."""
        return differences(self.span.type, self.restored.now, self.restored.wanted)


@dataclass(slots=True)
class UndoPlan:
    """
    What an undo would do now.

    Attributes:
        steps: What is changed back, in the order in which it is done.
        stays: What stays, in sentences.
    """

    steps: list[Step] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """A digest of the plan, by which the page of an undo knows whether it still is what the user has seen."""
        steps = [
            (step.span.type, step.span.pk, [(one.name, one.before, one.after) for one in step.differences])
            for step in self.steps
        ]
        return hashlib.sha256(repr((steps, self.stays)).encode()).hexdigest()[:32]

    @property
    def projects(self) -> set[str | None]:
        """The ids of the projects whose objects are changed back, and None if only operators may change one."""
        return {step.restored.project for step in self.steps}


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


def plan(entries: Iterable[AuditEntry]) -> UndoPlan:
    """Return what an undo of these audit entries would do at present."""
    result, entries = UndoPlan(), list(entries)
    names = Names.of(entries)
    coming: set[str] = set()
    known = [span for span in spans(entries) if span.type in HANDLERS]
    for span in sorted(known, key=lambda span: list(HANDLERS).index(span.type)):
        outcome = HANDLERS[span.type](span, coming)
        if isinstance(outcome, Kept):
            result.stays += outcome.sentences
            continue
        result.stays += outcome.kept
        if outcome.act is not None:
            result.steps.append(Step(span, outcome, lines(span.type, outcome.now, outcome.wanted, names)))
        if span.type == "policy" and outcome.wanted is not None:
            coming |= {span.pk, *(f"{outcome.wanted['slug']}/{limit['name']}" for limit in outcome.wanted["limits"])}
    others = [entry for entry in entries if entry.object_type not in HANDLERS]
    result.stays += [f"{sentence(entry)} That is not undone here." for entry in others]
    return result


def spans(entries: Iterable[AuditEntry]) -> list[Span]:
    """Return one span for each object, from before its first entry to after its last one."""
    found: dict[tuple[str, str], Span] = {}
    for entry in entries:
        key = entry.object_type, entry.object_id
        if entry.action.startswith("counters."):
            continue
        first = found.get(key)
        before = first.before if first else entry.before
        actions = (*(first.actions if first else ()), entry.action)
        found[key] = Span(*key, entry.object_label, before, entry.after, actions)
    return list(found.values())


def apply(tx: OpenChange, found: UndoPlan, revision: Revision, seen: str) -> None:
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
    if not found.steps:
        raise ValidationError(" ".join(["Nothing of it is left to undo.", *found.stays[:MOST_REASONS]]))
    for step in found.steps:
        if step.restored.act is not None:
            step.restored.act(tx)
    PublishedChange.objects.create(change=tx.id, undoes=revision)


class Changed(Exception):
    """Raised if an undo would not do what the user has confirmed. ``plan`` is what it would do now."""

    def __init__(self, found: UndoPlan) -> None:
        super().__init__("The plan of the undo has changed.")
        self.plan = found
