"""How usage is divided into shards, and where its batches go: never to a shard that no control plane reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from enforcement.embedded import ValkeyServer
from enforcement.engine.duties import UsageDelivery
from enforcement.metering.settlement import Settlement
from enforcement.model.documents import parse_token
from enforcement.model.keys import Keys
from enforcement.model.strict_json import dumps
from enforcement.state.token_cache import TokenEntry
from enforcement.store.client import connect
from enforcement.store_calls.acl import enforcer, password_rules
from enforcement.usage.batch import OutgoingBatch
from enforcement.usage.counts import MAX_ROWS_PER_BATCH, UsageLog
from enforcement.usage.shards import MAX_SHARDS, MIN_ROWS_A_SHARD, read_shards
from tests.enforcement.published import token

KEYS = Keys()
MINUTE = 29_000_000


@pytest.fixture
def log() -> UsageLog:
    return UsageLog("proxy-1")


def count(log: UsageLog, tokens: int, minute: int = MINUTE) -> None:
    """Count a request of each of these tokens, which makes a row each."""
    for number in range(tokens):
        log.of(TokenEntry(parse_token(dumps(token(id=f"tok_{number}")))), []).passed(minute, 1, [])


def tokens_of(batches: list[OutgoingBatch]) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = {}
    for batch in batches:
        found.setdefault(batch.shard, set()).update(row[2] for row in json.loads(batch.rows))
    return found


def test_all_rows_of_a_token_have_one_shard_in_each_process_and_delivery(log: UsageLog) -> None:
    """Two drains that add to rows of one token would wait for each other."""
    count(log, 1_000)
    first = tokens_of(log.drain(lambda: 4))
    other = UsageLog("proxy-2")
    count(other, 1_000, MINUTE + 1)

    assert tokens_of(other.drain(lambda: 4)) == first
    assert set(first) == {0, 1, 2, 3}
    assert sum(map(len, first.values())) == 1_000
    assert all(200 < len(tokens) < 300 for tokens in first.values())


def test_few_rows_stay_one_batch_and_nobody_is_asked_for_shards(log: UsageLog) -> None:
    """A batch costs as much as a row, and most processes see few tokens a second."""
    count(log, 2 * MIN_ROWS_A_SHARD - 1)
    assert [batch.shard for batch in log.drain(lambda: 1 // 0)] == [None]

    count(log, 4 * MIN_ROWS_A_SHARD - 1)
    assert [batch.shard for batch in log.drain(lambda: 4)] == [None, None]


def test_rows_beyond_the_batches_of_a_delivery_wait_and_none_is_lost(log: UsageLog) -> None:
    """Each shard has a batch, and the fullest shards have more. All else comes with the next delivery."""
    count(log, 12_000)
    delivered = []
    while batches := log.drain(lambda: 4):
        assert len(batches) <= 8
        delivered += batches
        for batch in batches:
            log.delivered(batch)

    rows = [row for batch in delivered for row in json.loads(batch.rows)]
    assert (len(rows), len({row[2] for row in rows}), log.dropped) == (12_000, 12_000, 0)
    assert max(len(json.loads(batch.rows)) for batch in delivered) == MAX_ROWS_PER_BATCH
    assert len({batch.id for batch in delivered}) == len(delivered)


def test_batches_of_an_unavailable_store_do_not_grow_in_number(log: UsageLog) -> None:
    """Rows wait and are added up, as without shards."""
    for shards in (4, 32, 32, 4, 32):
        count(log, 1_000, MINUTE + shards)
        batches = log.drain(lambda shards=shards: shards)  # type: ignore[misc]

    assert len(batches) <= 2 * MAX_SHARDS
    rows = [row for batch in batches for row in json.loads(batch.rows)]
    assert sum(row[6] for row in rows) + sum(counts[0] for counts in log._waiting.values()) == 5_000


def test_settlements_go_to_the_shard_of_their_token(log: UsageLog) -> None:
    """Also those of tokens whose requests are in no row of this delivery."""
    metered = log.metering()
    opening: Any = SimpleNamespace(asked=None, estimate=None, price_revision=0)  # which no meter can read
    for number in range(300):
        metered.settled(("proj_1", f"tok_{number}"), MINUTE * 60_000_000, opening, Settlement("nothing", {}))
    count(log, 250)

    batches = log.drain(lambda: 4)

    settled = [(row[2], batch.shard) for batch in batches for row in json.loads(batch.metered or "[]")]
    assert len(settled) == 300
    requests = {name: shard for shard, names in tokens_of(batches).items() for name in names}
    assert all(requests.get(name, shard) == shard for name, shard in settled)


@pytest.mark.parametrize("text", [None, "", "0", "1", "-4", "4.5", "four", str(MAX_SHARDS + 1), "9" * 5_000, b"\xff"])
def test_an_announcement_that_is_not_valid_announces_nothing(text: str | bytes | None) -> None:
    assert read_shards(text) == 0


# The delivery, to a real store.

Deliver = Callable[[str], dict[str, int]]


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[Redis]:
    """A client of an empty store."""
    with connect(server.url) as plain:
        plain.flushall()
        yield plain


@pytest.fixture
def deliver(log: UsageLog, client: Redis) -> Deliver:
    """Deliver 1,000 rows to the store with this address, and return the number of rows by stream."""

    def run(url: str) -> dict[str, int]:
        count(log, 1_000)
        with connect(url, timeout=1.0) as own:
            UsageDelivery(own, KEYS, log).deliver()
        assert log.drain() == []
        streams = [KEYS.usage, *(KEYS.usage_shard(shard) for shard in range(MAX_SHARDS))]
        kept = {key: [f["rows"] for _, f in client.xrange(key)] for key in streams if client.type(key) == "stream"}
        return {key: sum(len(json.loads(rows)) for rows in batches) for key, batches in kept.items()}

    return run


def test_batches_go_to_the_shards_that_are_announced(deliver: Deliver, server: ValkeyServer, client: Redis) -> None:
    client.set(KEYS.usage_shards, 2)

    found = deliver(server.url)

    assert set(found) == {KEYS.usage_shard(0), KEYS.usage_shard(1)}
    assert sum(found.values()) == 1_000


@pytest.mark.parametrize("value", [None, "1", "many"])
def test_without_an_announcement_all_goes_to_the_main_stream(
    deliver: Deliver, server: ValkeyServer, client: Redis, value: str | None
) -> None:
    """An earlier control plane reads only that."""
    if value is not None:
        client.set(KEYS.usage_shards, value)

    assert deliver(server.url) == {KEYS.usage: 1_000}


def test_keys_of_another_type_do_not_stop_the_delivery(deliver: Deliver, server: ValkeyServer, client: Redis) -> None:
    """What the store refuses for a shard goes to the main stream."""
    client.set(KEYS.usage_shards, 2)
    client.set(KEYS.usage_shard(1), "no stream")
    found = deliver(server.url)
    assert (set(found), sum(found.values())) == ({KEYS.usage, KEYS.usage_shard(0)}, 1_000)

    client.delete(KEYS.usage_shards, KEYS.usage, KEYS.usage_shard(0))
    client.hset(KEYS.usage_shards, "no", "string")
    assert deliver(server.url) == {KEYS.usage: 1_000}


def test_an_announcement_of_any_bytes_does_not_stop_the_delivery(
    deliver: Deliver, server: ValkeyServer, client: Redis
) -> None:
    """Those that are no text cannot be decoded."""
    client.set(KEYS.usage_shards, b"\xff\xfe")

    assert deliver(server.url) == {KEYS.usage: 1_000}


def test_an_account_of_an_earlier_version_writes_to_the_main_stream(
    deliver: Deliver, server: ValkeyServer, client: Redis
) -> None:
    """It may neither read the announcement nor write to shards."""
    client.set(KEYS.usage_shards, 4)
    password = os.urandom(8).hex()
    rules = [rule.replace(f" %W~{KEYS.usage_shard(0)[:-1]}*", "") for rule in enforcer(KEYS)]
    rules = [rule for rule in rules if KEYS.usage_shards not in rule]
    assert len(rules) == len(enforcer(KEYS)) - 1
    assert rules != enforcer(KEYS)
    client.execute_command("ACL", "SETUSER", "earlier", "on", *rules, *password_rules(password))
    try:
        assert deliver(server.url.replace("redis://", f"redis://earlier:{password}@")) == {KEYS.usage: 1_000}
    finally:
        client.execute_command("ACL", "DELUSER", "earlier")


def test_batches_whose_shards_are_announced_no_longer_go_to_the_main_stream(
    log: UsageLog, server: ValkeyServer, client: Redis
) -> None:
    """As after the control plane went back to an earlier version while the store was away. They keep their ids."""
    count(log, 1_000)
    ids = {batch.id for batch in log.drain(lambda: 4)}

    with connect(server.url, timeout=1.0) as own:
        UsageDelivery(own, KEYS, log).deliver()

    assert {fields["id"] for _, fields in client.xrange(KEYS.usage)} == ids
    assert not client.exists(*map(KEYS.usage_shard, range(MAX_SHARDS)))
