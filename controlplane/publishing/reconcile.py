"""SQL is the truth: find where the store differs from it, and send what differs through the outbox like any change."""

import json
import logging
from collections.abc import Iterable, Iterator
from itertools import batched

import redis
from django.utils import timezone

from controlplane.projects.models import Token
from controlplane.publishing import compile, publisher, store
from controlplane.publishing.locks import hold
from controlplane.publishing.models import OutboxEntry
from enforcement.lua import LIBRARY_NAME
from enforcement.store.client import load_library

logger = logging.getLogger(__name__)

# The documents hash also holds revision, store_id and published_at_us.
OWN_FIELDS = ("revision", "store_id", "published_at_us")
TOKEN_BATCH = 1000


def reconcile(*, full: bool = False, client: redis.Redis | None = None) -> list[str]:
    """
    Compare the store with SQL, repair what differs, and return a line for each repair.

    Without *full* only what is cheap is looked at, every few seconds: the function library, the store's identity, its
    revision, the number of documents. With it every document and token is read.

    Raises:
        One of STORE_ERRORS: The store is away.
    """
    client = client or store.connection()
    with hold(client, publisher.LOCK, ttl_ms=publisher.LOCK_TTL_MS) as fence:
        if fence is None:
            return []  # a publisher is at work, and what is half done is no difference
        repairs = [*_restore_library(client), *_remove_nonsense(client)]
        _publish_what_is_pending(client)
        differences = _emptied_or_set_back(client) or (list(_differing(client)) if full else [])
        repairs += _repair(client, differences)
    for repair in repairs:
        logger.warning("Reconciled: %s", repair)
    return repairs


def _restore_library(client: redis.Redis) -> list[str]:
    if client.function_list(library=LIBRARY_NAME):
        return []
    load_library(client)
    return ["the function library was missing"]


def _remove_nonsense(client: redis.Redis) -> list[str]:
    """A revision that is no number would make every publication fail."""
    documents = store.keys().documents
    if client.type(documents) not in ("hash", "none"):
        client.delete(documents)
        return ["the documents were no hash"]
    revision = client.hget(documents, "revision")
    if revision is None or revision.isdecimal():
        return []
    client.hdel(documents, "revision")
    return ["the revision was no number"]


def _publish_what_is_pending(client: redis.Redis) -> None:
    """Pending changes are no difference, only late: they are published first, and not reported."""
    while publisher.publish_next(client):
        pass


Difference = tuple[str, str, str]  # kind and object id of an outbox entry, and what people are told


def _emptied_or_set_back(client: redis.Redis) -> list[Difference]:
    state, last = store.StoreState.read(client), publisher.last_revision()
    if state.is_empty and not last:
        return [("all", "", "nothing was ever published")]
    if state.is_empty:
        return [("all", "", "the store was empty")]
    if state.revision != last:
        return [("all", "", f"the store was at revision {state.revision}, SQL at {last}")]
    documents = state.fields - len(OWN_FIELDS)
    if documents != compile.count_documents():
        return [("all", "", f"the store had {documents} documents, SQL {compile.count_documents()}")]
    return []


def _differing(client: redis.Redis) -> Iterator[Difference]:
    # The store before SQL: a change that comes between is then newer in SQL, and has its own outbox entry.
    found = client.hgetall(store.keys().documents)
    with compile.snapshot():
        expected = compile.all_documents()
    for name in sorted((found.keys() | expected.keys()) - set(OWN_FIELDS)):
        if _parsed(found.get(name)) != expected.get(name):
            kind, _, object_id = name.partition(":")
            yield kind, object_id, f"the document {name} differed"
    for batch in batched(compile.all_tokens(timezone.now()), TOKEN_BATCH):
        yield from _differing_tokens(client, batch)


def _differing_tokens(client: redis.Redis, batch: Iterable[tuple[str, compile.Document]]) -> Iterator[Difference]:
    batch = list(batch)
    with client.pipeline(transaction=False) as pipe:
        for digest, _ in batch:
            pipe.get(store.keys().token(digest))
        found = pipe.execute()
    for (digest, expected), text in zip(batch, found, strict=True):
        if _parsed(text) != expected:
            yield "token", digest, f"the token {expected['id']} differed"


def _repair(client: redis.Redis, differences: list[Difference]) -> list[str]:
    pending = set(OutboxEntry.objects.filter(revision=None).values_list("kind", "object_id"))
    differences = [found for found in differences if found[:2] not in pending]
    OutboxEntry.objects.bulk_create(
        OutboxEntry(kind=kind, object_id=object_id, by="reconcile", channel="task")
        for kind, object_id, _ in differences
    )
    _publish_what_is_pending(client)
    return [told for _, _, told in differences]


def _parsed(text: str | None) -> object:
    """Read a document; what is no JSON equals no document."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def queue_unknown_tokens() -> int:
    """
    Ask for the tokens that the store has and SQL does not to be deleted, and return how many there are.

    A back-up of the store that was restored brings them back. The whole key space is walked, so only a person asks.

    Raises:
        One of STORE_ERRORS: The store is away.
    """
    queued = 0
    found = store.connection().scan_iter(match=store.keys().token("*"), count=TOKEN_BATCH)
    for batch in batched(found, TOKEN_BATCH):
        digests = {key.rpartition(":")[2] for key in batch}
        unknown = digests - set(Token.objects.filter(digest__in=digests).values_list("digest", flat=True))
        OutboxEntry.objects.bulk_create(
            OutboxEntry(kind="token", object_id=digest, by="publish --all", channel="command") for digest in unknown
        )
        queued += len(unknown)
    return queued
