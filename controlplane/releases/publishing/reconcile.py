"""Repair of a store that differs from SQL. Each difference is published through the outbox, as a change is."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import batched

import redis
from django.utils import timezone

from controlplane.core import store
from controlplane.core.locks import hold
from controlplane.core.transactions import snapshot
from controlplane.releases.publishing import compile, installation, publisher, rebuild
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.traffic.fleet import heartbeats
from enforcement.lua import LIBRARY_NAME
from enforcement.store.client import load_library

logger = logging.getLogger(__name__)

# The documents hash also holds revision, store_id and published_at_us.
OWN_FIELDS = ("revision", "store_id", "published_at_us")
TOKEN_BATCH = 1000
# How long a task compares tokens, at most, which is well below its time limit. The next one goes on where it stopped.
SLICE_SECONDS = 25.0
# How long the store keeps the id of the last token that was compared.
PLACE_TTL_MS = 3_600_000


def reconcile(*, full: bool = False, client: redis.Redis | None = None) -> list[str]:
    """
    Compare the store with SQL, every document only if *full*, repair differences, and return a line for each repair.

    Without *full*, only the function library, the identity of the store, its revision and the number of documents are
    compared, which is cheap. With *full*, every document is compared, and as many tokens as a task has time
    for. The next comparison goes on with the tokens after these.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    client = client or store.connection()
    with _publisher(client) as free:
        if not free:
            return []  # a publisher is at work, and a half-written publication is not a difference
        publisher.check_owner(client)
        repairs = [*_restore_library(client), *_remove_invalid(client)]
        _publish_what_is_pending(client)
        installation.write_decision_key(client)  # a store of 0.2 has none
        whole = _emptied_or_set_back(client)
        repairs += _repair(client, whole)
    if full and not whole:
        repairs += _repair_differing(client)
    for repair in repairs:
        logger.warning("Reconciled: %s", repair)
    return repairs


@contextmanager
def _publisher(client: redis.Redis, wait_ms: int = 0) -> Iterator[bool]:
    """Be the publisher in the block, and yield whether no other one is at work."""
    with hold(client, publisher.LOCK, ttl_ms=publisher.LOCK_TTL_MS, wait_ms=wait_ms) as fence:
        yield fence is not None


def _repair_differing(client: redis.Redis) -> list[str]:
    """
    Compare every document and a slice of the tokens, repair what differs, and return a line for each repair.

    Nothing is published while this process has the lock of the publisher, so it compares without the lock. What is
    changed meanwhile may look like a difference, so it looks again with the lock.
    """
    found = list(_differing(client))
    if not found:
        return []
    with _publisher(client, wait_ms=publisher.LOCK_TTL_MS) as free:
        if not free:
            return []  # the next comparison finds them again
        _publish_what_is_pending(client)
        return _repair(client, list(_still_differing(client, found)))


def _restore_library(client: redis.Redis) -> list[str]:
    if client.function_list(library=LIBRARY_NAME):
        return []
    load_library(client)
    return ["the function library was missing"]


def _remove_invalid(client: redis.Redis) -> list[str]:
    """
    Delete documents, a revision and an identity that no enforcer can read, and return a line for each.

    No publication replaces these: it must have a higher revision than the store, and leaves the identity.
    """
    documents = store.keys().documents
    if client.type(documents) not in ("hash", "none"):
        client.delete(documents)
        return ["the documents were not a hash"]
    present, found = client.hmget(documents, "revision", "store_id"), store.StoreState.read(client)
    lines = []
    if present[0] is not None and not found.revision:
        lines.append("the revision was not a number")
    elif not heartbeats.is_plausible(found.revision, last_state()):
        lines.append(f"the revision {found.revision} was not plausible")
    if lines:
        client.hdel(documents, "revision")
    if present[1] is not None and not found.store_id:
        lines.append("the identity of the store was not valid")
        client.hdel(documents, "store_id")
    return lines


def _publish_what_is_pending(client: redis.Redis) -> None:
    """Publish the pending changes first, so that they are not reported as differences."""
    while publisher.publish_next(client, in_slices=True):
        pass


Difference = tuple[str, str, str]  # the kind and object id of an outbox entry, and a line for people
PRICES: Difference = ("prices", "", "the prices differed")


def _emptied_or_set_back(client: redis.Redis) -> list[Difference]:
    state, last = store.StoreState.read(client), last_state()
    if state.is_empty and not last.revision:
        return [("all", "", "nothing was published yet")]
    if state.is_empty:
        return [("all", "", "the store was empty")]
    if state.name != last:
        return [("all", "", f"the store was at {state.name}, SQL at {last}")]
    highest = heartbeats.highest_state(last, client)
    if highest > last or highest.revision > last.revision:
        return [("all", "", f"an instance runs {highest}, the store had {last}")]
    documents = state.fields - len(OWN_FIELDS)
    if documents != compile.count_documents():
        return [("all", "", f"the store had {documents} documents, SQL {compile.count_documents()}")]
    # It stands beside the tokens, too. If it is another there, enforcers believe the store none of them.
    beside = client.get(store.keys().revision) if client.type(store.keys().revision) == "string" else None
    if beside is not None and beside != f"{state.revision} {state.store_id}":
        return [("all", "", f"the store had {beside[:40]!r} beside its tokens, not its state")]
    return []


def _differing(client: redis.Redis) -> Iterator[Difference]:
    found = documents_of(client)
    with snapshot():
        expected = compile.all_documents()
    yield from _differing_documents(found, expected)
    if _prices_differ(client):
        yield PRICES
    # Without a place, the comparison begins with the first token.
    ends, last = time.monotonic() + SLICE_SECONDS, str(client.get(store.keys().reconcile_place) or "")
    while tokens := compile.tokens_after(last, timezone.now(), TOKEN_BATCH):
        yield from _differing_tokens(client, tokens)
        last = next(reversed(tokens.values()))["id"]
        if time.monotonic() > ends:
            break
    client.set(store.keys().reconcile_place, last if tokens else "", px=PLACE_TTL_MS)


def _still_differing(client: redis.Redis, differences: list[Difference]) -> Iterator[Difference]:
    """Yield those of the differences that are there now. The caller has the lock."""
    documents = {(kind, object_id) for kind, object_id, _ in differences if kind not in ("token", "prices")}
    if documents:
        names = [_name(*document) for document in documents]
        # The store is read before SQL. A change between the two is then newer in SQL, and has its own outbox entry.
        texts = client.hmget(store.keys().documents, names)
        present = dict(zip(names, map(as_document, texts), strict=True))
        with snapshot():
            compiled = compile.documents(documents)
        expected = {name: compiled[name] for name in names if compiled.get(name) is not None}
        yield from _differing_documents(present, expected)
    if PRICES in differences and _prices_differ(client):
        yield PRICES
    for batch in batched((digest for kind, digest, _ in differences if kind == "token"), TOKEN_BATCH):
        rows = compile.tokens(batch, timezone.now())
        yield from _differing_tokens(client, {digest: row for digest in batch if (row := rows[digest]) is not None})


def _differing_documents(
    found: Mapping[str, object], expected: Mapping[str, compile.Document | None]
) -> Iterator[Difference]:
    for name in sorted((found.keys() | expected.keys()) - set(OWN_FIELDS)):
        if found.get(name) != expected.get(name):
            kind, _, object_id = name.partition(":")
            yield kind, object_id, f"the document {name} differed"


def _name(kind: str, object_id: str) -> str:
    return f"{kind}:{object_id}" if object_id else kind


def _prices_differ(client: redis.Redis) -> bool:
    """Return whether the store has other prices than SQL. Their revision is that of their publication, whichever."""
    key = store.keys().prices
    kind = client.type(key)
    if kind not in ("string", "none"):
        return True
    found = as_document(client.get(key))
    revision = found.get("revision") if isinstance(found, dict) else None
    for expected in compile.prices(revision if isinstance(revision, int) else 1):
        return found != expected
    return False  # the rows cannot be published, so what the store has stays


def _differing_tokens(client: redis.Redis, tokens: Mapping[str, compile.Document]) -> Iterator[Difference]:
    with client.pipeline(transaction=False) as pipe:
        for digest in tokens:
            pipe.get(store.keys().token(digest))
        found = pipe.execute()
    for (digest, expected), text in zip(tokens.items(), found, strict=True):
        if as_document(text) != expected:
            yield "token", digest, f"the token {expected['id']} differed"


def _repair(client: redis.Redis, differences: list[Difference]) -> list[str]:
    pending = set(OutboxEntry.objects.filter(revision=None).values_list("kind", "object_id"))
    differences = [difference for difference in differences if difference[:2] not in pending]
    OutboxEntry.objects.bulk_create(
        OutboxEntry(kind=kind, object_id=object_id, by="reconcile", channel="task")
        for kind, object_id, _ in differences
    )
    _publish_what_is_pending(client)
    return [line for _, _, line in differences]


def documents_of(client: redis.Redis) -> dict[str, object]:
    """Return the documents of the store by their names, each as :func:`as_document` does."""
    return {str(name): as_document(text) for name, text in client.hgetall(store.keys().documents).items()}


def as_document(text: str | bytes | None) -> object:
    """Return the JSON value of a document, or the string itself if it is not JSON, which equals no document."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def queue_unknown_tokens() -> int:
    """
    Add outbox entries that delete the tokens in the store which SQL does not publish, and return their number.

    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    unknown = list(rebuild.unknown_tokens(store.connection(), timezone.now()))
    OutboxEntry.objects.bulk_create(
        OutboxEntry(kind="token", object_id=digest, by="publish --all", channel="command") for digest in unknown
    )
    return len(unknown)
