"""The return to a store that was away: used at once, without a herd, and nobody admits what is already owed."""

import asyncio
import time
from statistics import median

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.embedded import ValkeyServer
from enforcement.failover.replay import ReplayPace
from enforcement.store.client import connect
from tests.enforcement.crowd import crowd
from tests.enforcement.faults import FaultyPath
from tests.enforcement.moments import commands, commands_in
from tests.enforcement.world import eventually
from tests.scale import scale

pytestmark = pytest.mark.usefixtures("documents")

LIMIT = Limit(name="rate", quota=100, window_seconds=86_400)
PROCESSES, KEYS, ROUNDS = scale(4, 16), scale(100, 300), scale(1, 5)
AWAY_SECONDS, MOMENTS = scale((1.0, 0.6), (5.0, 1.0))
LONG = scale(1_000, 5_000)


def commands_of_a_return():
    """Freeze a store that processes ask for many keys, and return its commands in moments before and after."""
    with (
        ValkeyServer(persistent=False) as server,
        connect(server.url, timeout=5.0) as client,
        crowd(server.url, PROCESSES, keys=[f"k{i}" for i in range(KEYS)], pause=0.012, timeout=0.025) as load,
    ):
        load.go()
        time.sleep(0.3)
        steady, moments = commands_in(client, at_least=PROCESSES * 20, seconds=MOMENTS)
        server.freeze()
        time.sleep(AWAY_SECONDS)
        server.thaw()
        time.sleep(moments)
        return steady, commands(client)


@pytest.mark.proof
def test_processes_with_many_keys_do_not_come_back_as_a_herd():
    """In the first moments the store has no more than twice its commands of before, though each key is owed charges."""
    rounds = [commands_of_a_return() for _ in range(ROUNDS)]

    assert median(first / steady for steady, first in rounds) <= 2.0


@pytest.fixture
def path(own_server):
    """Give a way to the store that takes 2 ms."""
    path = FaultyPath(own_server.port)
    path.mode, path.delay = "delay", 0.002
    yield path
    path.close()


@pytest.mark.proof
def test_a_long_journal_does_not_delay_the_return(own_server, path):
    """Thousands of keys are owed charges over a path of 2 ms: the store decides at once, and has all within seconds."""
    with Limiter(path.url, timeout=0.1) as limiter:
        assert limiter.hit(LIMIT, "first").source == "store"
        limiter._engine.health.breaker.trip("test")
        own_server.freeze()
        assert {limiter.hit(LIMIT, f"k{number}").source for number in range(LONG)} == {"fallback"}
        own_server.thaw()
        back_at = time.monotonic()
        assert eventually(lambda: limiter.hit(LIMIT, "first", 0).source == "store")
        assert time.monotonic() - back_at < 2.5  # the longest pause between two probes is a second
        assert len(limiter._engine.fallback.journal) > LONG / 2

        assert eventually(lambda: not limiter._engine.fallback.owes(), 20.0)
    with Limiter(own_server.url, timeout=1.0) as other:
        assert {other.peek(LIMIT, f"k{number}").remaining for number in range(0, LONG, 100)} == {LIMIT.quota - 1}


@pytest.fixture
def unpaced(monkeypatch):
    """Let the background replay nothing, so that only decisions do."""
    monkeypatch.setattr(ReplayPace, "grant", lambda pace, now: 0)


def admitted_while_away(server, limiter, limit):
    """Use up half of a limit with the store, freeze it, take what this process may alone, and let the store return."""
    with_store = sum(limiter.hit(limit, "k").allowed for _ in range(limit.quota // 2))
    server.freeze()
    alone = sum(limiter.hit(limit, "k").allowed for _ in range(limit.quota))
    server.thaw()
    assert eventually(lambda: limiter.peek(Limit(name="other", quota=1, window_seconds=60), "other").source == "store")
    return with_store + alone


@pytest.mark.proof
@pytest.mark.parametrize(
    "algorithm", scale(["fixed_window"], ["fixed_window", "sliding_log", "sliding_window", "token_bucket"])
)
def test_a_decision_replays_what_its_counter_is_owed_first(own_server, unpaced, algorithm):
    """The background has sent nothing yet, and still the first decision of the store knows of the outage."""
    limit = Limit(name="rate", algorithm=algorithm, quota=40, window_seconds=86_400)
    with Limiter(own_server.url, timeout=0.1) as limiter, Limiter(own_server.url, timeout=1.0) as other:
        assert other.peek(limit, "k").remaining == 40
        admitted = admitted_while_away(own_server, limiter, limit)
        assert eventually(lambda: not len(limiter._engine.fallback.in_doubt))
        assert limiter._engine.fallback.owes()

        decision = limiter.peek(limit, "k")
        assert (decision.source, decision.remaining) == ("store", 40 - admitted)
        assert not limiter._engine.fallback.owes()
        assert sum(limiter.hit(limit, "k").allowed for _ in range(40)) == 40 - admitted


def test_control_a_decision_that_does_not_replay_admits_twice(own_server, unpaced, monkeypatch):
    """What this process admitted alone is unknown to the store until it is replayed."""
    monkeypatch.setattr("enforcement.failover.replay.JournalReplay.owed_to", lambda replay, keys: [])
    with Limiter(own_server.url, timeout=0.1) as limiter:
        admitted = admitted_while_away(own_server, limiter, LIMIT)
        assert sum(limiter.hit(LIMIT, "k").allowed for _ in range(100)) > 100 - admitted


async def test_tasks_that_decide_at_once_replay_once(own_server, unpaced):
    """Thirty tasks find the same counter owed: each may send the batch, and it is charged once."""
    async with aio.Limiter(own_server.url, timeout=0.5) as limiter:
        assert (await limiter.hit(LIMIT, "k")).source == "store"
        limiter._engine.health.breaker.trip("test")
        alone = [await limiter.hit(LIMIT, "k") for _ in range(20)]
        assert {decision.source for decision in alone} == {"fallback"}
        assert eventually(lambda: not limiter._engine.health.breaker.open)

        decisions = await asyncio.gather(*(limiter.hit(LIMIT, "k") for _ in range(30)))
        assert {decision.source for decision in decisions} == {"store"}
        assert (await limiter.peek(LIMIT, "k")).remaining == 100 - 1 - 20 - 30


def test_a_counter_that_cannot_be_read_blocks_no_other(own_server, unpaced):
    """Its charge is dropped and counted; the other one of the same batch is charged."""
    with Limiter(own_server.url, timeout=0.2) as limiter, connect(own_server.url) as client:
        limits = [Limit(name=name, quota=100, window_seconds=86_400) for name in ("good", "bad")]
        assert limiter.hit(limits, "k").source == "store"
        [bad] = [bound.key for bound in limiter._plan_in_code(limits, "k").bounds if bound.limit.name == "bad"]
        limiter._engine.health.breaker.trip("test")
        assert limiter.hit(limits, "k").source == "fallback"
        client.delete(bad)
        client.rpush(bad, "spoilt")
        assert eventually(lambda: not limiter._engine.health.breaker.open)

        assert eventually(lambda: limiter.peek(limits[0], "k").remaining == 98)
        for _ in range(5):
            limiter.hit(limits, "k")
        assert limiter.stats().journal_dropped >= 1


def test_the_pace_begins_low_grows_and_rests():
    """Few charges in the first second, hundreds some seconds later; one grant a period; low again after a rest."""
    pace = ReplayPace()

    assert [pace.grant(10.0 + 0.25 * period) for period in range(9)] == [2, 3, 4, 6, 10, 15, 22, 34, 51]
    assert [pace.grant(12.1), pace.grant(12.2), pace.grant(14.0), pace.grant(60.0)] == [0, 0, 500, 500]
    pace.rest()
    assert [pace.admits(69.0) for _ in range(3)] == [True] * 3  # nothing is owed
    assert [pace.grant(70.0), pace.grant(70.1), pace.grant(70.25)] == [2, 0, 3]
    assert [pace.admits(70.5) for _ in range(4)] == [True, False, True, False]
    assert [pace.admits(71.5) for _ in range(3)] == [True] * 3
