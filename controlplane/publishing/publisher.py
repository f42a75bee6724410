"""
From the outbox to the store.

One publisher works at a time, under a lock that may fail. What keeps two from mixing is the revision: each reads the
store's, then compiles, then publishes the next number, which the store accepts once. Whoever is refused compiled too
early and does it again; whoever is accepted compiled after everything that the store already had.
"""

import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from controlplane.projects.models import Token
from controlplane.publishing import compile, store
from controlplane.publishing.locks import hold
from controlplane.publishing.models import OutboxEntry, Revision
from controlplane.usage import checkpoints
from enforcement.control.publication import Publication, publish_call, refused_by, tags_of
from enforcement.store.client import STORE_ERRORS, is_unknown_function, load_library

logger = logging.getLogger(__name__)

LOCK = "publish"
# A publisher that was killed holds up the others for so long. One that is slower than this is stopped by its revision.
LOCK_TTL_MS = 5000
LOCK_WAIT_MS = 250
BATCH = 5000
ATTEMPTS = 5
# Writing all documents anew takes about 70 microseconds a token. In a request only as many as it does not feel.
TOKENS_IN_A_REQUEST = 1000


class Postponed(RuntimeError):
    """Nothing was published now, for the reason given; the outbox keeps what is pending."""


@dataclass(slots=True)
class Work:
    """The outbox entries of one publication, and what they ask for."""

    entries: list[OutboxEntry]
    wanted: set[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = {(entry.kind, entry.object_id) for entry in self.entries}

    @classmethod
    def pending(cls) -> "Work":
        return cls(list(OutboxEntry.objects.filter(revision=None).order_by("pk")[:BATCH]))

    def ids(self, kind: str) -> list[str]:
        return [object_id for wanted, object_id in self.wanted if wanted == kind]

    @property
    def by(self) -> str:
        return ", ".join(dict.fromkeys(entry.by for entry in self.entries if entry.by))[:200]

    @property
    def channel(self) -> str:
        return self.entries[-1].channel if self.entries else ""


def publish_promptly() -> None:
    """Publish from a request: within the short time that a person waits, else leave it to Celery."""
    try:
        publish_pending(store.connection(settings.PUBLISH_TIMEOUT_SECONDS), most_tokens=TOKENS_IN_A_REQUEST)
    except STORE_ERRORS as exc:
        logger.warning("The store is away, the change is published later: %s", exc)
    except Postponed as exc:
        logger.warning("The change is published later: %s", exc)


def publish_pending(client: redis.Redis | None = None, *, most_tokens: int | None = None) -> int | None:
    """
    Publish everything in the outbox and return the last revision, or None: nothing to do, or another is at it.

    Raises:
        One of STORE_ERRORS: The store is away; everything stays pending.
        Postponed: Other publishers came first too often, or all of more than *most_tokens* tokens had to be written.
    """
    client = client or store.connection()
    revision = None
    with hold(client, LOCK, ttl_ms=LOCK_TTL_MS, wait_ms=LOCK_WAIT_MS) as fence:
        while fence and (published := publish_next(client, most_tokens)):
            revision = published
    return revision


def publish_all(*, by: str = "", channel: str = "task") -> int | None:
    """
    Write every document anew, so that the store holds what SQL holds; return the revision, or None as above.

    Raises:
        One of STORE_ERRORS: The store is away; the publication is pending.
    """
    OutboxEntry.objects.create(kind="all", by=by, channel=channel)
    return publish_pending()


def revision_of(entries: Iterable[int]) -> int | None:
    """Return the revision that carries all these outbox entries, None while one is pending."""
    numbers = list(OutboxEntry.objects.filter(pk__in=entries).values_list("revision", flat=True))
    return None if None in numbers else max(numbers, default=None)


def last_revision() -> int:
    return Revision.objects.aggregate(last=Max("number"))["last"] or 0


def publish_next(client: redis.Redis, most_tokens: int | None = None) -> int | None:
    """Publish one batch of the outbox and return its revision, None when there is none. The caller holds the lock."""
    for _ in range(ATTEMPTS):
        # Before anything is read from SQL: see the head of this module.
        state = store.StoreState.read(client)
        with compile.snapshot():
            work = Work.pending()
            if not work.entries:
                return None
            publication = _compile(work, state, most_tokens)
        _make_whole(client, state, publication, most_tokens)
        if _send(client, publication):
            checkpoints.forget(client, publication.documents)
            return _mark(work, publication)
    raise Postponed(f"{ATTEMPTS} attempts were overtaken by other publishers.")


def _compile(work: Work, state: store.StoreState, most_tokens: int | None) -> Publication:
    """A store at another revision than SQL's was emptied or set back: pieces would not mend it, so all is sent."""
    last, now = last_revision(), timezone.now()
    full = state.is_empty or state.revision != last or ("all", "") in work.wanted
    if full and most_tokens is not None and Token.objects.count() > most_tokens:
        raise Postponed("The whole store has to be written, which takes longer than a request may.")
    documents = compile.all_documents() if full else compile.documents(work.wanted)
    tokens = dict(compile.all_tokens(now)) if full else {}
    return Publication(
        revision=max(last, state.revision) + 1,
        now_us=compile.microseconds(now),
        documents=documents,
        # Also in a full publication: a deleted token's key is not among all tokens.
        tokens=compile.tokens(work.ids("token"), now) | tokens,
        resets=compile.resets(work.ids("reset")),
        full=full,
        # Without one, a store that was emptied since it was looked at refuses pieces, and is then sent all.
        store_id=secrets.token_hex(16) if full else "",
        replace_all=full,
    )


def _make_whole(client: redis.Redis, state: store.StoreState, publication: Publication, most: int | None) -> None:
    """
    Give the store the durable counters that it lost, before it is published to and enforcers trust it.

    Raises:
        Postponed: There are more than *most* of them, or this process' account may not write counters.
    """
    there = [name for name, document in publication.documents.items() if document is not None]
    tags = checkpoints.all_tags() if publication.full else tags_of(there)
    if not state.revision < last_revision():  # else it was emptied or set back, and may have older counts
        tags = checkpoints.missing(client, tags)
    if most is not None and checkpoints.number(tags) > most:
        raise Postponed("The store lost more counters than a request has time to give back.")
    try:
        checkpoints.restore(client, tags)
    except redis.ResponseError as exc:
        if "permission" not in str(exc):  # in a function it is no NoPermissionError
            raise
        raise Postponed(f"The store lost counters that only the worker may give back: {exc}") from exc


def _send(client: redis.Redis, publication: Publication) -> bool:
    """Tell whether the store took the publication; False: it has this revision or a later one, or was emptied."""
    function, names, arguments = publish_call(publication, store.keys())
    try:
        reply = client.fcall(function, len(names), *names, *arguments)
    except redis.ResponseError as exc:
        if not is_unknown_function(exc):
            raise
        load_library(client)
        reply = client.fcall(function, len(names), *names, *arguments)
    return refused_by(reply) is None


def _mark(work: Work, publication: Publication) -> int:
    """Write down what the store has taken. A crash before this publishes the same state again, as the next revision."""
    now = timezone.now()
    with transaction.atomic():
        revision = Revision.objects.create(
            number=publication.revision,
            at=now,
            by=work.by,
            channel=work.channel,
            changes=_changes(publication),
            published_at=now,
        )
        # Entries that a second publisher has marked meanwhile keep its revision, which carried them too.
        ids = [entry.pk for entry in work.entries]
        OutboxEntry.objects.filter(pk__in=ids, revision=None).update(revision=revision)
    logger.info("Published revision %d", revision.number)
    return revision.number


def _changes(publication: Publication) -> dict[str, Any]:
    """What people may read of a publication: tokens by id and prefix, no digest, and of a full one their number."""
    digests = [] if publication.full else list(publication.tokens)
    return {
        "full": publication.full,
        "documents": publication.documents,
        "tokens": list(Token.objects.filter(digest__in=digests).order_by("pk").values("id", "prefix")),
        "token_count": len(publication.tokens),
        "resets": publication.resets,
    }
