"""What a revision changed, in one word, and the rows that lead from a change to its revision."""

from collections.abc import Collection, Iterable

from controlplane.policies.models import AuditEntry
from controlplane.publishing.models import PublishedChange, Revision
from enforcement.control.publication import Publication

# By the type of the object in the audit.
KIND_OF = {
    "policy": Revision.POLICY,
    "project": Revision.POLICY,
    "override": Revision.OVERRIDE,
    "token": Revision.TOKEN,
    # Rare, and what people look for first.
    "breakglass": Revision.POLICY,
    "suspension": Revision.POLICY,
}
RANKS = [kind for kind, _ in Revision.KINDS]


def kind_of(publication: Publication, changes: Collection[str]) -> str:
    """Return the kind of a publication, by the audit entries of its changes, or by its documents without any."""
    if publication.full:
        return Revision.FULL
    entries = AuditEntry.objects.filter(change__in=changes) if changes else AuditEntry.objects.none()
    audited = entries.exclude(action__startswith="counters.").order_by().values_list("object_type", "action")
    kinds = {_kind(*one) for one in audited.distinct()}
    return highest(kinds or _published_kinds(publication))


def _kind(object_type: str, action: str) -> str:
    suspends = action.endswith((".suspend", ".resume"))
    return Revision.POLICY if suspends else KIND_OF.get(object_type, Revision.OTHER)


def highest(kinds: Iterable[str]) -> str:
    """Return the kind that a list of revisions shows of several, or ``OTHER`` for none."""
    return min(kinds, key=RANKS.index, default=Revision.OTHER)


def _published_kinds(publication: Publication) -> set[str]:
    """Return the kinds of a publication without changes, which is one of the reconciler."""
    kinds = {Revision.POLICY} if publication.documents else set()
    return kinds | ({Revision.TOKEN} if publication.tokens else set())


def note_changes(revision: Revision, changes: Iterable[str]) -> None:
    """Save that *revision* has published these changes. A change that was published in two parts keeps the later."""
    rows = [PublishedChange(change=change, revision=revision) for change in changes]
    PublishedChange.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["change"], update_fields=["revision"]
    )
