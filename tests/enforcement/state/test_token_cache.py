"""What a process holds of the published tokens."""

import gc
import tracemalloc
from collections.abc import Sequence

import pytest

from enforcement import Limiter
from enforcement.embedded import ValkeyServer
from enforcement.engine import agent
from enforcement.model.tokens import digest, mint
from enforcement.store.client import call_function, connect
from enforcement.store_calls.publication import Publication, publish_call
from tests.enforcement import published

USED = 300
# A used token has its document, its plan and its counts.
MOST_BYTES = 5_000


def held(server: ValkeyServer, tokens: Sequence[str], used: Sequence[str]) -> int:
    """Publish these tokens to an empty store, use some of them, and return the bytes that Python then has more."""
    documents = {
        "policy:pol_1": published.policy(1_000_000),
        "project:proj_1": published.project(),
        "global": {"schema": 1, "policy": None},
    }
    rows = {digest(token): published.token(id=f"tok_{number}") for number, token in enumerate(tokens)}
    with connect(server.url, timeout=10) as client:
        client.flushall()
        publication = Publication(1, 1, "store-1", documents, rows, full=True, replace_all=True)
        call_function(client, *publish_call(publication, published.KEYS))
    del rows, publication
    with Limiter(server.url, timeout=5.0, lookup=5.0) as limiter:  # what is decided without the store takes memory
        limiter.check(tokens[-1])
        gc.collect()
        tracemalloc.start()
        assert all(limiter.check(token) for token in used)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return size


def test_only_used_tokens_take_memory(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty times as many published tokens, a process that uses the same ones holds no more."""
    for duty in ("HEARTBEAT_SECONDS", "DELIVERY_SECONDS"):  # which take memory while they are at work
        monkeypatch.setattr(agent, duty, 3_600.0)
    tokens = [mint("live") for _ in range(20 * USED)]

    alone, among_many = held(server, tokens[:USED], tokens[:USED]), held(server, tokens, tokens[:USED])

    assert alone < USED * MOST_BYTES
    assert among_many < 1.1 * alone
