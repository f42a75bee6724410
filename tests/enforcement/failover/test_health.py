"""What makes a store unavailable: decisions that fail, and nothing that fails beside them."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.model.keys import Keys
from enforcement.store.absence import Absence
from enforcement.store.address import Address
from enforcement.store.breaker import FAILURES_TO_OPEN, Breaker
from enforcement.store.connection import SyncPipe
from enforcement.store.resp import pack
from enforcement.store_calls.acl import enforcer
from tests.enforcement.world import World, eventually, fixed
from tests.scale import scale

WIDE = Limit(name="wide", quota=1_000_000, window_seconds=86_400)
pytestmark = pytest.mark.usefixtures("no_documents")  # few need any, and those wait for them

SLOT = Limit(name="slot", algorithm="concurrency", quota=1, window_seconds=600)
CUTS = scale(5, 30)


def readers_of_the_log(client):
    """Return the ids of the connections that wait for changes."""
    return {entry["id"] for entry in client.client_list() if entry["cmd"] == "xread"}


def test_a_change_log_that_is_cut_costs_no_decision(server, world):
    """Its connection is closed again and again while the store decides: the only slot is never given out twice."""
    secret = world.everything(fixed(1_000))
    with Limiter(server.url, timeout=0.2) as limiter, limiter.admit(SLOT, "held"):
        sources = {limiter.check(secret).source}
        assert eventually(lambda: readers_of_the_log(world.client))
        for _ in range(CUTS):
            before = readers_of_the_log(world.client)
            for ident in before:
                world.client.client_kill_filter(_id=ident)
            assert eventually(lambda before=before: readers_of_the_log(world.client) - before)
            sources |= {limiter.check(secret).source, limiter.peek(SLOT, "held").source}
            assert not limiter.peek(SLOT, "held").allowed
        stats = limiter.stats()

    assert sources == {"store"}
    assert (stats.outages, stats.state) == (0, "ok")


def test_a_background_that_fails_is_told_and_the_store_decides_on(server, world, caplog):
    """An account that is closed for everything but decisions: the change log cannot be followed, and that is said."""
    world.everything(fixed(1_000))
    with Limiter(server.url, timeout=0.2) as limiter:
        failing = limiter._engine.health.connector.duty_failures
        limiter._engine.agent._change_log.entries = lambda *given: (_ for _ in ()).throw(OSError("cut"))
        assert eventually(lambda: "log failed 3 times in a row" in caplog.text)
        assert limiter.hit(WIDE, "k").source == "store"
        del limiter._engine.agent._change_log.entries
        assert eventually(lambda: "The log works again" in caplog.text)
        assert failing.is_degraded() is False
        assert limiter.stats().outages == 0


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("mode", ["swallow", "cut"])
def test_a_store_that_fails_every_few_calls_is_left_after_five(path, mode, every):
    """One success does not make up for the failures around it. Nobody asks it any more while it is left."""
    limiter = Limiter(path.url, timeout=0.1)
    limiter.peek(WIDE, "k")
    assert eventually(lambda: limiter.stats().fleet_size >= 1)
    path.every, path.mode = every, mode
    decisions = []
    while not limiter.stats().outages:
        decisions.append(limiter.hit(WIDE, "k"))
        assert len(decisions) < 100
    after = [limiter.hit(WIDE, "k") for _ in range(20)]
    path.mode = "pass"
    limiter.close()

    # One without a cause waits for nobody: its counter is owed what was admitted here a moment ago.
    assert 1 <= sum(decision.degraded and decision.cause != "" for decision in decisions) <= FAILURES_TO_OPEN
    assert {(decision.source, decision.cause) for decision in after} == {("fallback", "")}


def test_a_few_late_replies_leave_threads_with_the_store(path):
    """One of a hundred is late by far, on each of four connections: the store decides the rest."""
    limiter = Limiter(path.url, timeout=0.3)
    limiter.peek(WIDE, "k")
    path.delay, path.every, path.mode = 0.7, 200, "delay"
    with ThreadPoolExecutor(4) as threads:
        decisions = list(threads.map(lambda _: limiter.hit(WIDE, "k"), range(2_000)))
    path.mode = "pass"
    late = path.hit
    stats = limiter.stats()
    limiter.close()

    assert late >= 10
    assert stats.outages == 0
    # Those without a cause asked nobody: what the late ones had admitted was still owed to the counter.
    assert sum(decision.cause != "" for decision in decisions) <= 1.5 * late


async def test_a_few_late_replies_leave_tasks_with_the_store(path):
    """A late reply holds up the replies behind it on its connection, and counts once for all of them."""
    async with aio.Limiter(path.url, timeout=0.3) as limiter:
        await limiter.peek(WIDE, "k")
        path.delay, path.every, path.mode = 0.7, 20, "delay"

        async def ask():
            return [await limiter.hit(WIDE, "k") for _ in range(100)]

        decisions = [decision for some in await asyncio.gather(*(ask() for _ in range(20))) for decision in some]
        path.mode = "pass"
        stats, late = limiter.stats(), path.hit

    assert late >= 3
    assert stats.outages == 0
    assert sum(decision.degraded for decision in decisions) <= 21 * late


async def test_a_late_reply_fails_no_call_that_has_time_left(path):
    """The second call is sent half a budget later: the reply before it is late, and its own comes in time."""
    async with aio.Limiter(path.url, timeout=0.4) as limiter:
        await limiter.peek(WIDE, "k")
        path.only, path.delay, path.mode = b"_decide", 0.5, "delay"
        first = asyncio.create_task(limiter.hit(WIDE, "k"))
        await asyncio.to_thread(eventually, lambda: path.hit)
        await asyncio.sleep(0.2)  # not for time to pass: the call must be that much younger
        path.mode = "pass"
        second = await limiter.hit(WIDE, "k")

        assert ((await first).source, second.source) == ("fallback", "store")


async def test_one_connection_that_is_cut_counts_once(server, world):
    """Fifty calls are on it, and the next are made on a new one."""
    async with aio.Limiter(server.url, timeout=0.5) as limiter:
        assert (await limiter.hit(WIDE, "k")).source == "store"
        calls = [asyncio.ensure_future(limiter.hit(WIDE, "k")) for _ in range(50)]
        await asyncio.sleep(0)
        limiter._pipe._link._transport.abort()
        decisions = await asyncio.gather(*calls)

        assert {decision.cause for decision in decisions} == {"connection"}
        assert limiter.stats().outages == 0
        assert (await limiter.hit(WIDE, "k")).source == "store"


@pytest.mark.parametrize("busy", ["before", "after"])
async def test_the_budget_does_not_run_while_the_loop_is_busy(path, busy):
    """The loop does something else for three budgets, before or after the calls are written: all are answered."""
    path.delay, path.mode = 0.08, "delay"
    async with aio.Limiter(path.url, timeout=0.2) as limiter:
        assert (await limiter.hit(WIDE, "k")).source == "store"
        calls = [asyncio.ensure_future(limiter.hit(WIDE, "k")) for _ in range(20)]
        for _ in range(1 if busy == "before" else 2):
            await asyncio.sleep(0)
        time.sleep(0.6)
        decisions = await asyncio.gather(*calls)
        path.mode = "pass"

        assert {decision.source for decision in decisions} == {"store"}
        assert limiter.stats().store_failures == {}


@pytest.mark.proof(times=3)
async def test_a_burst_is_no_outage(server, world):
    """Thousands of checks at once take longer than a budget, by the work of this process: the store stays in use."""
    async with aio.Limiter(server.url, timeout=0.1) as limiter:
        await limiter.hit(WIDE, "k")
        await asyncio.gather(*(limiter.hit(WIDE, "k") for _ in range(8_000)))

        assert limiter.stats().outages == 0
        assert (await limiter.hit(WIDE, "k")).source == "store"


def test_a_thread_that_waits_for_the_interpreter_loses_no_reply(server, world):
    """Its time is over and the reply is there, before another thread lets go of the interpreter."""
    pipe, command = SyncPipe(lambda: Address.from_url(server.url), 0.8), pack(("BLPOP", "{doc}:nothing", "1"))
    assert pipe.call(pack(("PING",))) == b"PONG"
    interval = sys.getswitchinterval()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pipe.call, command)
        assert eventually(lambda: world.client.info("clients")["blocked_clients"] == 1)
        sys.setswitchinterval(60)
        end = time.monotonic() + 1.3
        while time.monotonic() < end:  # holds the interpreter for longer than the reply takes
            pass
        sys.setswitchinterval(interval)
        assert waiting.result() is None
    pipe.close()


def test_a_probe_that_took_too_long_does_not_bring_the_store_back(path):
    """The store decided, and later than a decision may be: who returned would leave it again at once."""
    limiter = Limiter(path.url, timeout=0.5)
    limiter.hit(WIDE, "k")
    trial = limiter._engine.health._probe
    assert trial.steady_error() is None
    path.delay, path.mode = 0.55, "delay"

    assert trial.steady_error().cause == "timeout"
    path.mode = "pass"
    limiter.close()


async def test_tasks_that_lose_every_second_reply_at_the_start_leave_with_the_first(path):
    """Ten replies come in one piece. Nobody knows the store yet, so ten lost ones of twenty are enough."""
    async with aio.Limiter(path.url, timeout=0.3) as limiter:
        path.only, path.every, path.mode = b"_decide", 2, "swallow"

        async def ask():
            return [await limiter.hit(WIDE, "k") for _ in range(10)]

        decisions = [decision for some in await asyncio.gather(*(ask() for _ in range(10))) for decision in some]
        path.mode = "pass"

        assert limiter.stats().outages == 1
        assert sum(decision.cause != "" for decision in decisions) <= 20


def test_replies_that_come_in_crowds_are_judged_as_crowds():
    """A failure loses ten calls, as a success answers ten: the fifth of nine opens it, one in a hundred does not."""
    half, few = Breaker(), Breaker()
    for number in range(9):
        if number % 2 == 0:
            half.failed("timeout", crowd=10)
        for _ in range(10 * (number % 2)):
            half.succeeded()
        few.failed("timeout", crowd=10)
        for _ in range(990):
            few.succeeded()

    assert (half.open, few.open, few.failures) == (True, False, 0)


@pytest.mark.proof(times=1)
def test_a_path_that_is_too_slow_is_left_once(path):
    """Each reply is later than the budget: nobody returns to it, however often it is tried."""
    path.delay, path.mode = 0.03, "delay"
    with Limiter(path.url, timeout=0.025) as limiter:
        end = time.monotonic() + scale(1.2, 60)
        while time.monotonic() < end:
            limiter.hit(WIDE, "k")
            time.sleep(0.01)

        assert limiter.stats().outages <= scale(1, 2)


@pytest.mark.usefixtures("own_pace")
def test_an_account_that_is_refused_connects_less_than_once_a_second(server, world):
    """Each probe opens one connection, as its password is wrong; nothing else does."""
    world.client.execute_command("ACL SETUSER", "rotated", "on", ">first", *enforcer(Keys()))
    url = f"redis://rotated:first@127.0.0.1:{server.port}/0"
    with Limiter(url, timeout=0.2) as limiter:
        assert limiter.hit(WIDE, "k").source == "store"
        world.client.execute_command("ACL SETUSER", "rotated", "resetpass", ">second")
        world.client.execute_command("CLIENT KILL USER rotated")
        assert eventually(lambda: limiter.hit(WIDE, "k").degraded and limiter.stats().outages == 1)
        before = world.client.info("stats")["total_connections_received"]
        began = time.monotonic()
        assert eventually(lambda: world.client.info("stats")["total_connections_received"] - before >= 2, 10)
        seconds = time.monotonic() - began
    world.client.acl_deluser("rotated")

    assert seconds > 1.5


@pytest.mark.usefixtures("own_pace")
def test_probes_pause_for_more_than_a_second_in_the_end():
    """Also the shortest random pause, and longer ones for a store that refuses the account."""
    absence = Absence(time.monotonic)
    pauses = [absence.pause() for _ in range(40)]
    absence.note("auth")

    assert max(pauses[:3]) <= 0.2
    assert min(pauses[6:]) >= 1.0
    assert min(absence.pause() for _ in range(40)) >= 1.6


def test_old_failures_open_nothing(monkeypatch):
    """Five in a minute are not five in a second; and five of a hundred calls are not five of twenty."""
    seconds = [0.0]
    monkeypatch.setattr("enforcement.store.breaker.monotonic", lambda: seconds[0])
    rare, among, slow = Breaker(), Breaker(), Breaker(budget=1.0)
    for _ in range(FAILURES_TO_OPEN):
        rare.failed("timeout")
        slow.failed("timeout")
        seconds[0] += 1.1
    for _ in range(FAILURES_TO_OPEN):
        among.failed("timeout")
        for _ in range(19):
            among.succeeded()

    assert (rare.open, among.open, among.failures) == (False, False, 1)
    # Whose calls may take a second each has five of them in more than a second.
    assert slow.open


def test_a_store_without_requests_is_found_away(own_server):
    """Nobody asks, and the background finds that its connection ended: it tries decisions until that is clear."""
    World(own_server.url).everything(fixed(5))
    with Limiter(own_server.url, timeout=0.05) as limiter:
        assert eventually(lambda: limiter.state == "ok")
        own_server.kill()
        assert eventually(lambda: limiter.state == "degraded")
        own_server.start()
        assert eventually(lambda: limiter.state == "ok")
        assert limiter.stats().outages == 1
