"""The basis of a publication, and the rows that SQL keeps after the store has accepted it."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from django.db import transaction
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.core import store
from controlplane.releases.publishing import compile, kept
from controlplane.releases.publishing.models import OutboxEntry, PublishedChange, Revision, Work
from enforcement.model.documents import StateName, epoch_of
from enforcement.store_calls.publication import Publication

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
class Basis:
    """
    The data of which a publication is made.

    Args:
        state: The state of the store.
        last: The last state in SQL.
        work: The outbox entries.
        at: When this was read.
        tokens: The tokens that the entries name, as they were then.
    """

    state: store.StoreState
    last: StateName
    work: Work
    at: datetime
    tokens: compile.ChangedTokens

    @classmethod
    def of(cls, state: store.StoreState, work: Work) -> Self:
        """Return the basis of a publication of these entries to a store in this state, read from SQL."""
        at = timezone.now()
        return cls(state, last_state(), work, at, compile.changed_tokens(work.ids("token"), at))

    @property
    def is_elsewhere(self) -> bool:
        """Whether the store is at another revision than SQL, because one of the two was emptied or restored."""
        return self.state.name != self.last

    @property
    def has_others(self) -> bool:
        """Whether the store has documents of another state, and so may have tokens that SQL has deleted since."""
        return bool(self.state.fields) and self.is_elsewhere


def last_state() -> StateName:
    """Return the epoch and the number of the last revision in SQL, both 0 before the first."""
    revision = Revision.objects.order_by("-number").values_list("epoch", "number").first()
    return StateName(*revision) if revision else StateName(0, 0)


def save_revision(basis: Basis, publication: Publication, rewritten: int) -> int:
    """
    Save the revision that the store has accepted, and return its number.

    After a crash before this, the same state is published again as the next revision.

    Args:
        rewritten: How many tokens were written before a full publication, or 0.
    """
    now, work = timezone.now(), basis.work
    with transaction.atomic():
        revision = Revision.objects.create(
            number=publication.revision,
            # Only a full publication can begin another epoch than that of the last revision.
            epoch=epoch_of(publication.store_id) if publication.full else basis.last.epoch,
            at=now,
            by=work.by,
            channel=work.channel,
            changes={**_changes(basis, publication, rewritten), "ids": work.changes},
            published_at=now,
            kind=_kind_of(publication, work.changes),
        )
        _note_changes(revision, work.changes)
        kept.keep(revision.number, {**publication.documents, **_changed_tokens(basis)})
        # Entries that a second publisher has marked meanwhile keep its revision, which contains them too.
        ids = [entry.pk for entry in work.entries]
        OutboxEntry.objects.filter(pk__in=ids, revision=None).update(revision=revision)
    logger.info("Published revision %d", revision.number)
    return revision.number


def _changed_tokens(basis: Basis) -> dict[str, compile.Document]:
    """
    Return the documents of the changed tokens by the names under which they are kept, without those of deleted ones.

    A full publication has the documents of all tokens. Those that did not change are kept already.
    """
    return {f"token:{document['id']}": document for document in basis.tokens.documents.values() if document}


def _changes(basis: Basis, publication: Publication, rewritten: int) -> dict[str, object]:
    """Return the part of a publication that people may read, with tokens by id and prefix, and without digests."""
    return {
        "full": publication.full,
        "documents": publication.documents,
        "tokens": [] if publication.full else basis.tokens.names,
        "token_count": rewritten or len(publication.tokens),
        "resets": publication.resets,
        **({"prices": True} if publication.prices else {}),
    }


def _kind_of(publication: Publication, changes: Collection[str]) -> str:
    """Return the kind of a publication, by the audit entries of its changes, or by its documents without any."""
    if publication.full:
        return Revision.FULL
    entries = AuditEntry.objects.filter(change__in=changes) if changes else AuditEntry.objects.none()
    audited = entries.exclude(action__startswith="counters.").order_by().values_list("object_type", "action")
    kinds = {_kind(*one) for one in audited.distinct()}
    return _highest(kinds or _published_kinds(publication))


def _kind(object_type: str, action: str) -> str:
    suspends = action.endswith((".suspend", ".resume"))
    return Revision.POLICY if suspends else KIND_OF.get(object_type, Revision.OTHER)


def _highest(kinds: Iterable[str]) -> str:
    """Return the kind that a list of revisions shows of several, or ``OTHER`` for none."""
    return min(kinds, key=RANKS.index, default=Revision.OTHER)


def _published_kinds(publication: Publication) -> set[str]:
    """Return the kinds of a publication without changes, which is one of the reconciler."""
    kinds = {Revision.POLICY} if publication.documents else set()
    return kinds | ({Revision.TOKEN} if publication.tokens else set())


def _note_changes(revision: Revision, changes: Iterable[str]) -> None:
    """Save that *revision* has published these changes. A change that was published in two parts keeps the later."""
    rows = [PublishedChange(change=change, revision=revision) for change in changes]
    PublishedChange.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["change"], update_fields=["revision"]
    )
