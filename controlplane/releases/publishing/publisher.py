"""
Publication of the changes in the outbox to the store.

One publisher works at a time, under a lock. The lock may fail, so the revision keeps two publishers from mixing. Each
publisher reads the revision of the store, then compiles the documents, and then publishes the next number, which the
store accepts once. A publisher that is refused compiled too early and starts again. A publisher that is accepted
compiled after everything that the store already has.
"""

import logging
import secrets
from functools import partial

import redis
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.core import store
from controlplane.core.locks import hold
from controlplane.core.transactions import snapshot
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing import compile, installation, rebuild
from controlplane.releases.publishing.basis import Basis, last_state, save_revision
from controlplane.releases.publishing.models import OutboxEntry, Work
from controlplane.releases.publishing.rebuild import Progress
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.usage import checkpoints
from enforcement.model.documents import MAX_EPOCH, with_epoch
from enforcement.model.instants import to_us
from enforcement.store.client import STORE_ERRORS, call_function
from enforcement.store_calls.publication import Publication, publish_call, publish_whole_call, refused_by, tags_of

logger = logging.getLogger(__name__)

LOCK = "publish"
# The time for which a killed publisher blocks the others. A publisher that is slower is stopped by its revision.
LOCK_TTL_MS = 5000
LOCK_WAIT_MS = 250
ATTEMPTS = 5
# The kinds of outbox entries that a publication of single documents can contain.
PARTS = tuple(name for name in OutboxEntry.NAMES if name not in ("all", "epoch"))
# Writing all tokens takes about 30 microseconds for each. A request writes at most so many.
TOKENS_IN_A_REQUEST = 1000


class Postponed(RuntimeError):
    """Raised if nothing can be published now. The outbox keeps the pending changes."""


def publish_change(change: str) -> int | None:
    """Publish what is pending if the store responds in time, and return the revision with a change, by its id."""
    publish_promptly()
    return revision_of(change)


def publish_promptly() -> None:
    """Publish the outbox in the short time that a user waits for a request. If that fails, Celery publishes later."""
    try:
        publish_pending(store.connection(settings.PUBLISH_TIMEOUT_SECONDS), most_tokens=TOKENS_IN_A_REQUEST)
    except STORE_ERRORS as exc:
        logger.warning("The store is unavailable, so the change is published later: %s", exc)
    except Postponed as exc:
        logger.warning("Not everything is published yet: %s", exc)


def publish_pending(
    client: redis.Redis | None = None,
    *,
    most_tokens: int | None = None,
    progress: Progress | None = None,
    in_slices: bool = False,
) -> int | None:
    """
    Publish the outbox, and return the number of the last new revision, or None if there is none.

    Return None if nothing is pending, or if another publisher is at work.

    Args:
        in_slices: Whether a rebuild ends after a slice, as in a task, and the next call goes on with it.
    Raises:
        One of STORE_ERRORS: The store is unavailable. The changes stay pending.
        Postponed: Other publishers came first too often, a slice of a rebuild is over, or more than *most_tokens*
            tokens would have to be written. Changes that need not wait for a rebuild are published all the same.
    """
    client = client or store.connection()
    revision = None
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS, wait_ms=LOCK_WAIT_MS) as fence:
        more = fence is not None
        try:
            while more and (published := publish_next(client, most_tokens, progress, in_slices=in_slices)):
                revision, more = published, Work.is_pending()
        except Postponed:
            # A rebuild that was killed keeps the next one away for seconds. A revocation must not wait for that.
            while _publish_meanwhile(client, most_tokens):
                pass
            raise
    return revision


def publish_all(*, by: str = "", channel: str = "task", progress: Progress | None = None) -> int | None:
    """
    Write every document to the store, and return the revision's number, also if another publisher has written it.

    Return None if another publisher is still at work.

    Raises:
        One of STORE_ERRORS: The store is unavailable. The publication stays pending.
    """
    entry = OutboxEntry.objects.create(kind="all", by=by, channel=channel)
    return publish_pending(progress=progress) or _revision_with(entry)


def begin_epoch(*, by: str, channel: str, reason: str, progress: Progress | None = None) -> int | None:
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
    return publish_pending(progress=progress) or _revision_with(entry)


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


def publish_next(
    client: redis.Redis, most_tokens: int | None = None, progress: Progress | None = None, *, in_slices: bool = False
) -> int | None:
    """
    Publish one batch of the outbox and return the number of its revision, or None if the outbox is empty.

    The caller holds the lock.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
        Postponed: Nothing can be published now, or the store belongs to another installation.
    """
    check_owner(client)
    rebuilt = rebuild.Rebuild(LOCK, LOCK_TTL_MS, progress, in_slices)
    with rebuilt.ended(client):
        for _ in range(ATTEMPTS):
            # Read before anything is read from SQL, as the docstring of this module explains.
            state = store.StoreState.read(client)
            with snapshot():
                basis = Basis.of(state, Work.pending())
                if not basis.work.entries:
                    return None
                full = _is_full(basis, most_tokens)
                publication = _compile(client, basis, full) if rebuilt.mark or not full else None
            if publication is None:
                _write_tokens(client, rebuilt)
            elif revision := _publish(client, basis, publication, rebuilt, most_tokens):
                return revision
    raise Postponed(f"Other publishers came first in {ATTEMPTS} attempts.")


def _publish(
    client: redis.Redis,
    basis: Basis,
    publication: Publication,
    rebuilt: rebuild.Rebuild | None = None,
    most_tokens: int | None = None,
) -> int | None:
    """Publish what was compiled, and return the revision, or None if the store refused it."""
    _restore_counters(client, basis, publication, most_tokens)
    if not _send(client, publication, rebuilt):
        return None
    checkpoints.forget(client, publication.documents)
    return save_revision(basis, publication, rebuilt.tokens if rebuilt and publication.full else 0)


def _write_tokens(client: redis.Redis, rebuilt: rebuild.Rebuild) -> None:
    """Write the tokens of a full publication, and meanwhile publish the changes that need not wait for its end."""
    try:
        rebuilt.write(client, timezone.now(), partial(_publish_meanwhile, client))
    except (rebuild.Busy, rebuild.Unfinished) as exc:
        raise Postponed(str(exc)) from exc


def _publish_meanwhile(client: redis.Redis, most_tokens: int | None = None) -> int | None:
    """
    Publish the oldest pending changes during a rebuild, and return the revision, or None if there is nothing to do.

    Nothing is published if the store is at another revision than SQL, because it then needs the rebuild first.
    """
    check_owner(client)
    state = store.StoreState.read(client)
    with snapshot():
        basis = Basis.of(state, Work.pending(among=PARTS))
        if not basis.work.entries or state.is_empty or basis.is_elsewhere:
            return None
        publication = _compile(client, basis, full=False)
    return _publish(client, basis, publication, most_tokens=most_tokens)


def check_owner(client: redis.Redis) -> None:
    """
    Make the store this installation's if it is nobody's, or raise Postponed if it is another's.

    Otherwise each of the two would publish all of its own documents over those of the other, for ever.
    """
    if owner := installation.claim(client):
        raise Postponed(installation.sentence(owner))


def _is_full(basis: Basis, most_tokens: int | None) -> bool:
    """
    Return whether everything must be published, because it was requested or the store is at another revision than SQL.

    Raises:
        Postponed: That are more than *most_tokens* tokens, or the revision of the store cannot be trusted.
    """
    requested = any(kind in ("all", "epoch") for kind, _ in basis.work.wanted)
    full = basis.state.is_empty or basis.is_elsewhere or requested
    if full and most_tokens is not None and (basis.has_others or _has_more_tokens(most_tokens)):
        raise Postponed("The whole store must be written, which takes too long for a request.")
    revision = basis.state.revision
    if not heartbeats.is_plausible(revision, basis.last):
        raise Postponed(f"The store has revision {revision}, which is not plausible. The reconciler removes it.")
    return full


def _has_more_tokens(most: int) -> bool:
    return Token.objects.all()[: most + 1].count() > most


def _compile(client: redis.Redis, basis: Basis, full: bool) -> Publication:
    """
    Return the publication for these outbox entries, or if *full* for all rows but those of tokens.

    A store in another state than SQL was emptied or restored from a backup, or SQL was. Then everything is published,
    after every state that SQL, the store or a live instance has, as instances never obey an earlier one.
    """
    last, work = basis.last, basis.work
    begins = ("epoch", "") in work.wanted
    states = [last, basis.state.name, *([heartbeats.highest_state(last, client)] if full else [])]
    epoch = min(max(known.epoch for known in states) + begins, MAX_EPOCH)
    documents = compile.all_documents() if full else compile.documents(work.wanted)
    unknown: dict[str, compile.Document | None] = {}
    if full and basis.has_others:
        unknown = dict.fromkeys(rebuild.unknown_tokens(client, basis.at))
    revision = max(known.revision for known in states) + 1
    return Publication(
        revision=revision,
        now_us=to_us(basis.at),
        documents=documents,
        # In a full publication too, because a rebuild does not write deleted tokens, and tokens change during it.
        tokens=unknown | basis.tokens.documents,
        resets=compile.resets(work.ids("reset")),
        prices=compile.prices(revision) if full or ("prices", "") in work.wanted else (),
        full=full,
        # Without an id, a store that was emptied meanwhile refuses the publication, and then gets everything.
        store_id=with_epoch(secrets.token_hex(16), epoch) if full else "",
        replace_all=full,
    )


def _restore_counters(client: redis.Redis, basis: Basis, publication: Publication, most: int | None) -> None:
    """
    Restore the durable counters that the store has lost, before the publication lets enforcers trust it.

    Raises:
        Postponed: There are more than *most* counters, or the account of this process may not write them.
    """
    there = [name for name, document in publication.documents.items() if document is not None]
    tags = checkpoints.all_tags() if publication.full else tags_of(there)
    # A store at an older revision was emptied or restored from a backup, and may have old counts in every tag.
    if basis.state.revision >= basis.last.revision:
        tags = checkpoints.missing(client, tags)
    if most is not None and checkpoints.number(tags) > most:
        raise Postponed("The store lost more counters than a request can restore in time.")
    try:
        checkpoints.restore(client, tags)
    except redis.ResponseError as exc:
        if "permission" not in str(exc):  # inside a function, the error is not a NoPermissionError
            raise
        raise Postponed(f"The store lost counters that only the worker may restore: {exc}") from exc


def _send(client: redis.Redis, publication: Publication, rebuilt: rebuild.Rebuild | None) -> bool:
    """
    Send the publication to the store, and return whether the store accepted it.

    It refuses a publication if it has this revision or a later one, if it was emptied, or if it has lost the tokens of
    a rebuild, which then begins again.
    """
    call = publish_call(publication, store.keys())
    if rebuilt and publication.full:
        call = publish_whole_call(publication, rebuilt.mark, store.keys())
    refused = refused_by(call_function(client, *call))
    if refused is not None:
        if rebuilt and refused < 0:
            rebuilt.mark = ""
        return False
    if publication.full:  # the reconciler sees to a store that has lost it alone
        installation.write_decision_key(client)
    return True
