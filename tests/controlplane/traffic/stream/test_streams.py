"""Drains that share the shards of usage: each row is counted once, and no stream waits for another one."""

import json
import os
import signal

import psycopg
import pytest
from django.db import connection
from django.db.models import Sum
from django.utils import timezone

from controlplane.core import transactions
from controlplane.core.locks import hold
from controlplane.traffic.stream import streams
from controlplane.traffic.usage import drain as drainer
from controlplane.traffic.usage.drain import DrainResult, drain
from controlplane.traffic.usage.models import UsageBatch, UsageRow
from enforcement.model.keys import Keys
from enforcement.store_calls.acl import password_rules, worker
from enforcement.usage.shards import MAX_SHARDS, by_shard
from tests.controlplane.traffic.usage.conftest import NOON, USAGE, row
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

KEYS = Keys()


@pytest.fixture(autouse=True)
def two_drains(settings):
    """As with PostgreSQL. SQLite lets two work at once as well, and each waits for the other one's transactions."""
    settings.DRAINS = 2


@pytest.fixture
def report(client_of_store):
    """``report(3, "proxy-1-1", row())`` appends a batch to a shard, as an enforcer does, or to the main stream."""

    def send(shard: int | None, batch_id: str, *rows: list) -> str:
        fields = {"id": batch_id, "instance": "proxy-1", "rows": json.dumps(rows)}
        return client_of_store.xadd(USAGE if shard is None else KEYS.usage_shard(shard), fields)

    return send


def report_tokens(report, minute: int, tokens: int, batches: int) -> int:
    """Report requests of tokens by shards, and by an earlier enforcer, and return their number."""
    rows = [row(minute, token=f"tok_{number}") for number in range(tokens)]
    for batch in range(batches):
        for shard, some in by_shard(rows, 4).items():
            report(shard, f"proxy-1-{batch}-{shard}", *some)
        report(None, f"proxy-2-{batch}", *rows[::2])
    return batches * (tokens + len(rows[::2]))


def total(period: str = "minute", **which) -> int:
    return UsageRow.objects.filter(period=period, **which).aggregate(total=Sum("allowed"))["total"] or 0


def waiting(client_of_store) -> int:
    return sum(streams.lengths(client_of_store).values())


def test_one_drain_alone_reads_every_stream(report, client_of_store):
    """Those of earlier enforcers, and those of a time with more shards."""
    for shard in (None, 0, 3, MAX_SHARDS - 1):
        report(shard, f"proxy-{shard}", row(token=f"tok_{shard}"), row())

    assert drain(NOON) == DrainResult(counted=4)
    assert (total(), total(token_id="tok_1"), waiting(client_of_store)) == (8, 4, 0)


def test_shards_are_announced_for_a_minute_by_drains_that_read_them(store, client_of_store, settings):
    """Twice as many as there are drains. A drain that works alone needs none."""
    settings.DRAINS = 1
    drain(NOON)
    assert not client_of_store.exists(KEYS.usage_shards)

    settings.DRAINS = 3
    drain(NOON)
    assert client_of_store.get(KEYS.usage_shards) == "6"
    assert 0 < client_of_store.pttl(KEYS.usage_shards) <= 60_000


def test_an_account_that_may_not_read_shards_announces_none(report, store, client_of_store, settings):
    """It was made by an earlier version. Usage goes on in the main stream."""
    password = os.urandom(8).hex()
    shards, announcement = KEYS.usage_shard(0)[:-1], KEYS.usage_shards
    rules = [
        rule.replace(f" ~{shards}*", "").replace(f" %R~{shards}*", "").replace("+xlen ", "") for rule in worker(KEYS)
    ]
    rules = [rule for rule in rules if announcement not in rule]
    client_of_store.execute_command("ACL", "SETUSER", "earlier", "on", *rules, *password_rules(password))
    report(None, "proxy-1-1", row())
    settings.REDIS_URL = store.url.replace("redis://", f"redis://earlier:{password}@")
    try:
        assert drain(NOON) == DrainResult(counted=1)
    finally:
        client_of_store.execute_command("ACL", "DELUSER", "earlier")
    assert not client_of_store.exists(announcement)


@pytest.mark.parametrize("key", [KEYS.usage, KEYS.usage_shard(0)])
def test_a_key_that_is_no_stream_keeps_no_other_one_waiting(report, client_of_store, caplog, key):
    """Another program has written it. Streams before and behind it are read."""
    report(0 if key == KEYS.usage else None, "proxy-1-1", row())
    report(5, "proxy-1-5", row())
    client_of_store.set(key, "no stream")

    assert drain(NOON) == DrainResult(counted=2)
    assert f"{key} is not a stream" in caplog.text
    assert client_of_store.exists(KEYS.usage_shards)

    client_of_store.delete(key)
    report(None if key == KEYS.usage else 0, "proxy-1-9", row())
    assert drain(NOON) == DrainResult(counted=1)


def test_a_shard_that_another_drain_has_is_left_to_it(report, client_of_store):
    """Both would wait for the same rows."""
    for shard in (0, 1):
        report(shard, f"proxy-1-{shard}", row(token=f"tok_{shard}"))

    with hold(client_of_store, "drain-shard-0", ttl_ms=60_000):
        assert drain(NOON) == DrainResult(counted=1)
    assert total(token_id="tok_1") == 1

    assert drain(NOON) == DrainResult(counted=1)


def test_a_stream_that_is_never_empty_keeps_no_other_one_waiting(report, monkeypatch):
    """A drain reads each of them in turn."""
    for number in range(6):
        report(0, f"proxy-1-{number}", row())
    report(1, "proxy-2-1", row(token="tok_2"))
    monkeypatch.setattr(drainer, "ENTRIES_AT_ONCE", 2)
    seen = []
    count = drainer.count
    monkeypatch.setattr(
        drainer, "count", lambda batches, now: seen.append([b.id for b in batches]) or count(batches, now)
    )

    drain(NOON)

    assert [ids[0] for ids in seen] == ["proxy-1-0", "proxy-2-1", "proxy-1-2", "proxy-1-4"]


def test_a_transaction_is_bounded_by_the_size_of_its_entries(report, client_of_store, monkeypatch):
    """Others wait for its rows, and the locks of the drain must last for longer than it."""
    monkeypatch.setattr(drainer, "BYTES_AT_ONCE", 10_000)
    monkeypatch.setattr(drainer, "ENTRIES_A_READ", 1)
    sizes = []
    count = drainer.count
    monkeypatch.setattr(drainer, "count", lambda batches, now: sizes.append(len(batches)) or count(batches, now))
    for number in range(10):
        report(0, f"proxy-1-{number}", *[row(token=f"tok_{token}") for token in range(60)])

    assert drain(NOON, more=lambda: sizes.append(0)) == DrainResult(counted=10)

    assert sizes[0] == 0
    assert set(sizes[1:]) == {3, 1}
    assert (total(), waiting(client_of_store)) == (600, 0)


DRAINS_UNTIL_EMPTY = """
import os, signal, time
from django.conf import settings
from django.utils import timezone
from controlplane.core import store
from controlplane.traffic.usage import drain
from controlplane.traffic.stream import streams

settings.DRAINS, drain.ENTRIES_AT_ONCE = 2, 5
client = store.connection()
execute = drain.execute

def die(*arguments):
    client.set("begun", 1)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)

if {dies} == "before the first row":
    drain.execute = die
elif {dies} == "before the commit":
    drain.execute = lambda statements: (execute(statements), die())
elif {dies} == "before noting tokens":
    drain.note_use_of_tokens = die
elif {dies} == "before deleting":
    drain.Claims.delete = die
else:
    while not client.get("begun"):
        time.sleep(0.01)
while any(streams.lengths(client).values()):
    drain.drain(timezone.now())
    time.sleep(0.01)
"""
STEPS = ["before the first row", "before the commit", "before noting tokens", "before deleting"]


@pytest.mark.parametrize(
    "dies", [pytest.param(step, marks=[] if step == "before deleting" else [pytest.mark.proof]) for step in STEPS]
)
def test_two_drains_of_which_one_is_killed_count_each_row_once(report, run_python, client_of_store, dies):
    """The other one goes on with the other shards beside it, and with the killed one's when its lock has expired."""
    expected = report_tokens(report, int(timezone.now().timestamp() // 60), 20, batches := scale(8, 200))

    killed, other = (run_python(DRAINS_UNTIL_EMPTY.format(dies=repr(when))) for when in (dies, ""))
    assert killed.wait() == -signal.SIGKILL
    for name in ("drain", "drain-1", *(f"drain-shard-{shard}" for shard in range(4))):
        client_of_store.delete(f"sg:{{lock}}:{name}")  # as its time to live would, later

    assert other.wait() == 0
    assert [total(period) for period in ("minute", "hour", "day")] == [expected] * 3
    assert (UsageBatch.objects.count(), waiting(client_of_store)) == (5 * batches, 0)


on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer, and no row locks")


@on_postgresql
def test_rows_that_are_locked_for_too_long_hold_up_their_shard_alone(report, client_of_store, monkeypatch, caplog):
    """As by a process that was suspended. Its shard is counted by a later run."""
    monkeypatch.setattr(transactions, "LOCK_WAIT_MS", 100)
    report(1, "proxy-1-1", row(token="tok_locked"))
    drain(NOON)
    for shard, token in enumerate(["tok_0", "tok_locked", "tok_2", "tok_3"]):
        report(shard, f"proxy-2-{shard}", row(token=token))

    with psycopg.connect(**connection.get_connection_params()) as holder:
        holder.execute("UPDATE usage_usagerow SET allowed = allowed WHERE token_id = 'tok_locked'")
        assert drain(NOON) == DrainResult(counted=3)
        assert "locked for too long" in caplog.text
    assert waiting(client_of_store) == 1

    assert drain(NOON) == DrainResult(counted=1)
    assert total() == 5
