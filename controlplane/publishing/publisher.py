"""
Publication of the changes in the outbox to the store.

One publisher works at a time, under a lock. The lock may fail, so the revision keeps two publishers from mixing. Each
publisher reads the revision of the store, then compiles the documents, and then publishes the next number, which the
store accepts once. A publisher that is refused compiled too early and starts again. A publisher that is accepted
compiled after everything that the store already has.
"""

import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import batched
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from controlplane.core import store
from controlplane.core.instants import microseconds
from controlplane.core.locks import hold
from controlplane.core.transactions import snapshot
from controlplane.fleet import heartbeats
from controlplane.policies.models import AuditEntry
from controlplane.projects.models import Token
from controlplane.publishing import compile, installation, kept, kinds
from controlplane.publishing.models import OutboxEntry, Revision
from controlplane.usage import checkpoints
from enforcement.control.publication import Publication, publish_call, refused_by, tags_of
from enforcement.model.documents import MAX_EPOCH, StateName, epoch_of, with_epoch
from enforcement.store.client import STORE_ERRORS, call_function

logger = logging.getLogger(__name__)

LOCK = "publish"
# The time for which a killed publisher blocks the others. A publisher that is slower is stopped by its revision.
LOCK_TTL_MS = 5000
LOCK_WAIT_MS = 250
BATCH = 5000
ATTEMPTS = 5
# Writing all documents takes about 70 microseconds for each token. A request writes at most so many.
TOKENS_IN_A_REQUEST = 1000


class Postponed(RuntimeError):
    """Raised if nothing can be published now. The outbox keeps the pending changes."""


@dataclass(slots=True)
class Work:
    """The outbox entries of one publication, and the objects that they name."""

    entries: list[OutboxEntry]
    wanted: set[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = {(entry.kind, entry.object_id) for entry in self.entries}

    @classmethod
    def pending(cls) -> "Work":
        """Return a new Work with the oldest outbox entries that are not published yet, at most BATCH of them."""
        return cls(list(OutboxEntry.objects.filter(revision=None).order_by("pk")[:BATCH]))

    def ids(self, kind: str) -> list[str]:
        """Return the object ids of the entries of this kind."""
        return [object_id for wanted, object_id in self.wanted if wanted == kind]

    @property
    def changes(self) -> list[str]:
        """The ids of the changes that the entries belong to."""
        return list(dict.fromkeys(entry.change for entry in self.entries if entry.change))

    @property
    def by(self) -> str:
        return ", ".join(dict.fromkeys(entry.by for entry in self.entries if entry.by))[:200]

    @property
    def channel(self) -> str:
        return self.entries[-1].channel if self.entries else ""


def publish_promptly() -> None:
    """Publish the outbox in the short time that a user waits for a request. If that fails, Celery publishes later."""
    try:
        publish_pending(store.connection(settings.PUBLISH_TIMEOUT_SECONDS), most_tokens=TOKENS_IN_A_REQUEST)
    except STORE_ERRORS as exc:
        logger.warning("The store is unavailable, so the change is published later: %s", exc)
    except Postponed as exc:
        logger.warning("The change is published later: %s", exc)


def publish_pending(client: redis.Redis | None = None, *, most_tokens: int | None = None) -> int | None:
    """
    Publish the outbox, and return the number of the last new revision, or None if there is none.

    Return None if nothing is pending, or if another publisher is at work.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The changes stay pending.
        Postponed: Other publishers came first too often, or more than *most_tokens* tokens would have to be written.
    """
    client = client or store.connection()
    revision = None
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS, wait_ms=LOCK_WAIT_MS) as fence:
        while fence and (published := publish_next(client, most_tokens)):
            revision = published
    return revision


def publish_all(*, by: str = "", channel: str = "task") -> int | None:
    """
    Write every document to the store, and return the revision's number, also if another publisher has written it.

    Return None if another publisher is still at work.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The publication stays pending.
    """
    entry = OutboxEntry.objects.create(kind="all", by=by, channel=channel)
    return publish_pending() or _revision_with(entry)


def begin_epoch(*, by: str, channel: str, reason: str) -> int | None:
    """
    Write every document in a new epoch, and return the revision, or None if another publisher is still at work.

    All enforcers obey it, whatever they ran before. It is recorded in the audit.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The epoch begins with the next publication.
    """
    with transaction.atomic():
        before = last_state()
        entry = OutboxEntry.objects.create(kind="epoch", by=by, channel=channel)
        AuditEntry.objects.create(
            actor=by,
            channel=channel,
            action="store.new_epoch",
            object_type="store",
            object_label="the published state",
            before={"epoch": before.epoch, "revision": before.revision},
            reason=reason,
        )
    return publish_pending() or _revision_with(entry)


def _revision_with(entry: OutboxEntry) -> int | None:
    """Return the revision with which the worker has published an entry meanwhile, or None if it is pending."""
    return OutboxEntry.objects.values_list("revision", flat=True).get(pk=entry.pk)


def revision_of(change: str) -> int | None:
    """Return the revision that contains all of a change, or None while a part is pending or if it has no entries."""
    numbers = set(OutboxEntry.objects.filter(change=change).values_list("revision", flat=True))
    return None if None in numbers else max(numbers, default=None)


def last_revision() -> int:
    """Return the number of the last revision that SQL has, or 0 before the first."""
    return last_state().revision


def last_state() -> StateName:
    """Return the epoch and the number of the last revision in SQL, both 0 before the first."""
    found = Revision.objects.order_by("-number").values_list("epoch", "number").first()
    return StateName(*found) if found else StateName(0, 0)


def publish_next(client: redis.Redis, most_tokens: int | None = None) -> int | None:
    """
    Publish one batch of the outbox and return the number of its revision, or None if the outbox is empty.

    The caller holds the lock.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
        Postponed: Nothing can be published now, or the store belongs to another installation.
    """
    if OutboxEntry.objects.filter(revision=None).exists():
        check_owner(client)
    for _ in range(ATTEMPTS):
        # Read before anything is read from SQL, as the docstring of this module explains.
        state = store.StoreState.read(client)
        with snapshot():
            work = Work.pending()
            if not work.entries:
                return None
            publication = _compile(client, work, state, most_tokens)
        _restore_counters(client, state, publication, most_tokens)
        if _send(client, publication):
            checkpoints.forget(client, publication.documents)
            return _mark(work, publication)
    raise Postponed(f"Other publishers came first in {ATTEMPTS} attempts.")


def check_owner(client: redis.Redis) -> None:
    """
    Make the store this installation's if it is nobody's, or raise Postponed if it is another's.

    Otherwise each of the two would publish all of its own documents over those of the other, for ever.
    """
    if owner := installation.claim(client):
        raise Postponed(installation.sentence(owner))


def _compile(client: redis.Redis, work: Work, state: store.StoreState, most_tokens: int | None) -> Publication:
    """
    Return the publication for these outbox entries, or for all rows if the store is at another revision than SQL.

    A store in another state than SQL was emptied or restored from a backup, or SQL was. Then everything is published,
    after every state that SQL, the store or a live instance has, as instances never obey an earlier one.
    """
    last, now = last_state(), timezone.now()
    begins = ("epoch", "") in work.wanted
    full = state.is_empty or state.name != last or begins or ("all", "") in work.wanted
    # A store with documents of another state may have tokens of it, too, which SQL has deleted since.
    has_others = bool(state.fields) and state.name != last
    if most_tokens is not None and (has_others or (full and Token.objects.count() > most_tokens)):
        raise Postponed("The whole store must be written, which takes too long for a request.")
    if not heartbeats.is_plausible(state.revision, last):
        raise Postponed(f"The store has revision {state.revision}, which is not plausible. The reconciler removes it.")
    states = [last, state.name, *([heartbeats.highest_state(last, client)] if full else [])]
    epoch = min(max(known.epoch for known in states) + begins, MAX_EPOCH)
    documents = compile.all_documents() if full else compile.documents(work.wanted)
    tokens: dict[str, compile.Document | None] = dict.fromkeys(unknown_tokens(client, now)) if has_others else {}
    tokens |= compile.all_tokens(now) if full else ()
    revision = max(known.revision for known in states) + 1
    return Publication(
        revision=revision,
        now_us=microseconds(now),
        documents=documents,
        # Needed in a full publication too, because a deleted token is not among all tokens.
        tokens=compile.tokens(work.ids("token"), now) | tokens,
        resets=compile.resets(work.ids("reset")),
        prices=compile.prices(revision) if full or ("prices", "") in work.wanted else (),
        full=full,
        # Without an id, a store that was emptied meanwhile refuses the publication, and then gets everything.
        store_id=with_epoch(secrets.token_hex(16), epoch) if full else "",
        replace_all=full,
    )


def unknown_tokens(client: redis.Redis, now: datetime) -> Iterator[str]:
    """
    Yield the digest of each token in the store that SQL does not publish, because it was deleted or expired long ago.

    Such tokens come from a restored backup of the store. All keys are scanned, so no request waits for this.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    keys = store.keys()
    for batch in batched(client.scan_iter(match=keys.token("*"), count=TOKENS_IN_A_REQUEST), TOKENS_IN_A_REQUEST):
        digests = {key.rpartition(":")[2] for key in batch if key != keys.revision}
        yield from digests - compile.published_among(digests, now)


def _restore_counters(client: redis.Redis, state: store.StoreState, publication: Publication, most: int | None) -> None:
    """
    Restore the durable counters that the store has lost, before the publication lets enforcers trust it.

    Raises:
        Postponed: There are more than *most* counters, or the account of this process may not write them.
    """
    there = [name for name, document in publication.documents.items() if document is not None]
    tags = checkpoints.all_tags() if publication.full else tags_of(there)
    # A store at an older revision was emptied or restored from a backup, and may have old counts in every tag.
    if state.revision >= last_revision():
        tags = checkpoints.missing(client, tags)
    if most is not None and checkpoints.number(tags) > most:
        raise Postponed("The store lost more counters than a request can restore in time.")
    try:
        checkpoints.restore(client, tags)
    except redis.ResponseError as exc:
        if "permission" not in str(exc):  # inside a function, the error is not a NoPermissionError
            raise
        raise Postponed(f"The store lost counters that only the worker may restore: {exc}") from exc


def _send(client: redis.Redis, publication: Publication) -> bool:
    """
    Send the publication to the store, and return whether the store accepted it.

    It refuses a publication if it has this revision or a later one, or if it was emptied.
    """
    if refused_by(call_function(client, *publish_call(publication, store.keys()))) is not None:
        return False
    write_decision_key(client)
    return True


def write_decision_key(client: redis.Redis) -> None:
    """
    Write the secret by which enforcers make decision ids to the store.

    It follows from SECRET_KEY, which it does not reveal. So a store that was emptied gets the same one again, and ids
    that clients have kept can still be read. It is no document, because enforcers of 0.2 would report an unknown one.
    """
    client.set(store.keys().decision_key, decision_secret(settings.SECRET_KEY))


def decision_secret(secret_key: str) -> str:
    """Return the secret of decision ids that follows from a ``SECRET_KEY``."""
    return hmac.digest(secret_key.encode(), b"sluicegate decision key", hashlib.sha256).hex()


def _mark(work: Work, publication: Publication) -> int:
    """
    Save the revision that the store has accepted, and return its number.

    After a crash before this, the same state is published again as the next revision.
    """
    now = timezone.now()
    with transaction.atomic():
        revision = Revision.objects.create(
            number=publication.revision,
            epoch=_epoch_of(publication),
            at=now,
            by=work.by,
            channel=work.channel,
            changes={**_changes(publication), "ids": work.changes},
            published_at=now,
            kind=kinds.kind_of(publication, work.changes),
        )
        kinds.note_changes(revision, work.changes)
        kept.keep(revision.number, {**publication.documents, **_changed_tokens(work, publication)})
        # Entries that a second publisher has marked meanwhile keep its revision, which contains them too.
        ids = [entry.pk for entry in work.entries]
        OutboxEntry.objects.filter(pk__in=ids, revision=None).update(revision=revision)
    logger.info("Published revision %d", revision.number)
    return revision.number


def _changed_tokens(work: Work, publication: Publication) -> dict[str, compile.Document]:
    """
    Return the documents of the changed tokens by the names under which they are kept, without those of deleted ones.

    A full publication has the documents of all tokens. Those that did not change are kept already.
    """
    documents = [publication.tokens.get(digest) for digest in work.ids("token")]
    return {f"token:{document['id']}": document for document in documents if document}


def _epoch_of(publication: Publication) -> int:
    """Return the epoch of a publication. Only a full one can begin another epoch than that of the last revision."""
    return epoch_of(publication.store_id) if publication.full else last_state().epoch


def _changes(publication: Publication) -> dict[str, Any]:
    """Return the part of a publication that people may read, with tokens by id and prefix, and without digests."""
    digests = [] if publication.full else list(publication.tokens)
    return {
        "full": publication.full,
        "documents": publication.documents,
        "tokens": list(Token.objects.filter(digest__in=digests).order_by("pk").values("id", "prefix")),
        "token_count": len(publication.tokens),
        "resets": publication.resets,
        **({"prices": True} if publication.prices else {}),
    }
