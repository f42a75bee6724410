"""A primary that sentinels know: found, lost under load, replaced, and not written to when it comes back."""

import asyncio
import struct
import subprocess
import time

import pytest
from redis import Redis

from enforcement import Limit, Limiter, aio
from enforcement.embedded import find_binary, free_port
from enforcement.store.client import connect
from tests.enforcement.crowd import crowd
from tests.enforcement.stalls import timed
from tests.enforcement.topologies import SERVICE, SentinelTrio, execute
from tests.enforcement.world import World, eventually, fixed

# At which point of a call a primary is lost is chance, so that a proof loses it more than once.
pytestmark = pytest.mark.proof(times=5)

LIMIT = Limit(name="rate", quota=1_000_000, window_seconds=86_400)
KEY = "k"
PROCESSES = 3
BACK_SECONDS = 5.0


@pytest.fixture
def trio():
    with SentinelTrio() as trio:
        yield trio


@pytest.fixture(scope="module")
def steady():
    """Give one whose primary stays."""
    with SentinelTrio() as trio:
        World(trio.url).client.close()
        yield trio


def used_in_store(url, limit=LIMIT):
    limiter = Limiter(url, timeout=1.0)
    left = limiter.peek(limit, KEY).remaining
    limiter.close()
    return limit.quota - left


def charged(server):
    """Return the permits that a server, which may be a replica, has charged to the key."""
    limiter = Limiter("redis://127.0.0.1:1", timeout=0.001)
    (name,) = limiter._engine.planner.plan_in_code(LIMIT, KEY).keys
    with Redis(port=server.port) as client:
        value = client.get(name)
    return 0 if value is None else int(struct.unpack(">d", value[:8])[0])


def function_calls(server):
    """Return how many functions a server was asked for; what a replica applies is not among them."""
    return execute(server, "INFO", "commandstats").get("cmdstat_fcall", {"calls": 0})["calls"]


def test_a_failover_under_load_costs_no_exception_and_writes_come_back(trio):
    """
    The primary is killed under three processes. Every one of them decides on, without waiting, and writes to the new
    primary within five seconds of its promotion; the old one comes back as a primary of its own and gets no write.
    """
    world = World(trio.url)
    secret = world.everything(fixed(1_000_000, seconds=86_400))
    trio.fail_over_once()
    with crowd(trio.url, PROCESSES, keys=[KEY], tokens=[secret], pause=0.003, timeout=0.1) as asking:
        asking.go()
        time.sleep(0.5)
        killed_at = time.time()
        trio.primary.kill()
        replicated = {server: charged(server) for server in trio.replicas}
        assert eventually(lambda: trio.promoted() is not None, 10, 0.03)
        promoted_at = time.time()
        survived = replicated[trio.promoted()]
        assert eventually(trio.agreed, 10, 0.03)
        trio.fail_over_no_more()
        trio.primary.start()  # with the configuration of a primary, as it was before
        started_at = time.time()
        assert eventually(lambda: all(asking.all_have(who, "store", started_at, 50) for who in (KEY, secret)), 60)
        asking.stop()
        ledger = asking.ledger()

    assert {line.process for line in ledger} == set(range(PROCESSES))
    after = [line for line in ledger if line.at > killed_at]
    assert "fallback" in {line.source for line in after}
    for who in (KEY, secret):
        for process in range(PROCESSES):
            back = min(line.at for line in after if (line.who, line.process, line.source) == (who, process, "store"))
            assert back - promoted_at < BACK_SECONDS
            assert [line.source for line in ledger if (line.who, line.process) == (who, process)][-1] == "store"
    # Two cores for all of this: the scheduler's part is generous.
    assert max(line.took_ms for line in ledger) < 100 + 400
    assert function_calls(trio.primary) == 0
    # Replication is asynchronous: what the old primary had not yet handed on is lost, no more.
    admitted = sum(line.allowed for line in ledger if line.who == KEY)
    before = sum(line.allowed for line in ledger if line.who == KEY and line.at <= killed_at)
    assert admitted - max(0, before - survived) <= used_in_store(trio.url) <= admitted + PROCESSES
    world.client.close()


def test_a_demoted_primary_is_left_by_one_question(trio, monkeypatch):
    """
    Asked to step down, it refuses writes: both limiters ask the sentinels once more, and every decision is the store's.
    The control is a third that keeps the address it had, and decides without the store for good.
    """
    World(trio.url).client.close()
    runner = asyncio.Runner()
    plain, awaited, pinned = (kind(trio.url, timeout=2.0) for kind in (Limiter, aio.Limiter, Limiter))
    hits = [
        lambda: plain.hit(LIMIT, "plain").source,
        lambda: runner.run(awaited.hit(LIMIT, "awaited")).source,
        lambda: pinned.hit(LIMIT, "pinned").source,
    ]
    known = [limiter._engine.health.connector.sentinels for limiter in (plain, awaited, pinned)]
    assert [hit() for hit in hits] == ["store"] * 3
    for sentinels in known:
        sentinels.look = lambda: None  # so that only what is lost is asked for
    pinned_to = known[2].known()
    known[2]._ask = lambda: pinned_to
    asked = [sentinels.queries for sentinels in known]
    with Redis(port=trio.sentinel_ports[0]) as sentinel:
        sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
    assert eventually(trio.agreed, 15, 0.03)
    trio.demote()

    assert eventually(lambda: hits[0]() == hits[1]() == "store")
    sources = [[hit() for _ in range(20)] for hit in hits]

    assert sources == [["store"] * 20, ["store"] * 20, ["fallback"] * 20]
    # Once for decisions, once for the agent, once before paying.
    assert all(sentinels.queries - before <= 3 for sentinels, before in zip(known, asked, strict=True))
    assert execute(trio.primary, "ROLE")[0] == "slave"
    runner.run(awaited.close())
    runner.close()
    plain.close()
    pinned.close()


def test_an_idle_process_learns_of_another_primary(trio):
    """One that asked nothing while the primary was frozen and replaced does not write to it when it thaws."""
    World(trio.url).client.close()
    limiter = Limiter(trio.url, timeout=0.5)
    limiter.hit(LIMIT, KEY)
    before = function_calls(trio.primary)
    trio.primary.freeze()
    assert eventually(lambda: trio.promoted() is not None, 10, 0.03)
    assert eventually(lambda: limiter.state != "degraded", 10)
    trio.primary.thaw()

    assert limiter.hit(LIMIT, KEY).source == "store"
    # What was under way when it froze may be answered when it thaws: a heartbeat, and the tries that found it away.
    assert function_calls(trio.primary) - before <= 6
    assert used_in_store(trio.url) >= 1
    limiter.close()


def test_sentinels_that_ask_for_a_password_get_it(steady):
    """The account of the sentinels is another than the servers', and without it nobody is found."""
    port = free_port()
    folder = steady.primary.directory / f"guarded-{port}"  # a proof runs this more than once
    folder.mkdir()
    config = folder / "sentinel.conf"
    config.write_text(
        f'port {port}\nbind 127.0.0.1\ndir "{folder}"\nrequirepass let/me:in\n'
        f"sentinel monitor guarded 127.0.0.1 {steady.primary.port} 1\n"
    )
    with subprocess.Popen([find_binary(), config, "--sentinel"], stdout=subprocess.DEVNULL) as process:
        try:
            url = f"redis+sentinel://127.0.0.1:{port}/guarded"
            known = Limiter(f"{url}?sentinel_password=let%2Fme%3Ain", timeout=1.0)
            assert eventually(lambda: known.hit(LIMIT, KEY).source == "store")
            with connect(f"{url}?sentinel_password=let%2Fme%3Ain") as client:
                assert client.ping()
            unknown = Limiter(url, timeout=1.0)
            assert unknown.hit(LIMIT, KEY).source == "fallback"
            known.close()
            unknown.close()
        finally:
            process.kill()


def test_an_unknown_service_is_a_store_that_is_away(steady):
    """Decisions go on by each limit's own rule, and the cause can be read."""
    limiter = Limiter(steady.url.replace(f"/{SERVICE}", "/other"), timeout=0.5)

    assert limiter.hit(LIMIT, KEY).source == "fallback"
    assert "sentinel" in limiter._engine.counts.failures
    limiter.close()


def test_sentinels_that_hang_or_are_gone_hold_nobody_up(steady):
    """The first of three is frozen, the second down: the third says where the primary is, within the budget."""
    _, second, _ = steady.sentinels
    steady.freeze_sentinel(0)
    second.kill()
    second.wait(10)
    limiter = Limiter(steady.url, timeout=0.5)

    decision, took = timed(lambda: limiter.hit(LIMIT, KEY))

    assert decision.source == "store"
    assert took < 1.0
    limiter.close()
