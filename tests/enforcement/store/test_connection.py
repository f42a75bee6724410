"""The hot connection: replies stay with their callers, and a broken one harms nobody but the call it broke."""

import asyncio
import contextlib
import random
import socket
import time
from pathlib import Path

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.run_steps import run_within
from enforcement.store import connection
from enforcement.store.address import Address, TimeToWait
from enforcement.store.aio_connection import AsyncPipe, _Link
from enforcement.store.connection import _TICK_US, SyncPipe, _in_ticks
from enforcement.store.errors import StoreError, trouble
from enforcement.store.resp import pack
from tests.enforcement.stalls import Stalls, timed
from tests.enforcement.world import eventually

pytestmark = pytest.mark.usefixtures("no_documents")

WIDE = Limit(name="wide", quota=1_000_000, window_seconds=3_600)


@pytest.mark.parametrize(("mode", "delay"), [("swallow", 0), ("garble", 0), ("cut", 0), ("delay", 0.3), ("drip", 0.02)])
def test_a_spoiled_reply_becomes_a_fallback_in_time(path, mode, delay):
    """No exception reaches the caller, whatever arrives, and the same limiter is served by the store afterwards."""
    limiter = Limiter(path.url, timeout=0.05)
    assert eventually(lambda: limiter.hit(WIDE, "k").source == "store")
    path.mode, path.delay = mode, delay

    decision, took = timed(lambda: limiter.hit(WIDE, "k"))
    path.mode = "pass"

    assert path.hit
    assert decision.source == "fallback"
    assert took < 0.05 * 3 + 0.1
    deadline = time.monotonic() + 5
    while limiter.hit(WIDE, "k").source != "store":
        assert time.monotonic() < deadline
    limiter.close()


@pytest.mark.parametrize(("mode", "delay"), [("swallow", 0), ("garble", 0), ("cut", 0), ("delay", 0.3)])
async def test_asyncio_falls_back_in_time_too(path, mode, delay):
    """All calls in flight on the connection are decided, each by the fallback."""
    limiter = aio.Limiter(path.url, timeout=0.05)
    assert (await limiter.hit(WIDE, "k")).source == "store"
    path.mode, path.delay = mode, delay

    with Stalls() as stalls:
        decisions = await asyncio.gather(*(limiter.hit(WIDE, "k") for _ in range(20)))

    assert path.hit
    assert {decision.source for decision in decisions} == {"fallback"}
    assert stalls.seconds < 0.05 * 3 + 0.1
    path.mode = "pass"  # for the background, which would wait for replies before it ends
    await limiter.close()


@pytest.mark.parametrize(("mode", "source"), [("delay", "store"), ("swallow", "fallback")])
async def test_calls_in_flight_are_not_sent_again_by_a_limiter_that_is_closed(path, world, mode, source):
    """
    It waits for their replies, as their tasks go on. The store may have executed those that get none, and a connection
    that is opened for them is one that nobody closes.
    """
    limiter = aio.Limiter(path.url, timeout=1.0)
    await limiter.hit(WIDE, "closed")
    path.only, path.mode, path.delay = b"_decide", mode, 0.3
    calls = [asyncio.create_task(limiter.hit(WIDE, "closed")) for _ in range(5)]
    await asyncio.to_thread(eventually, lambda: path.hit)
    path.mode = "pass"

    await limiter.close()
    decisions = await asyncio.gather(*calls)

    assert {decision.source for decision in decisions} == {source}
    assert not limiter._pipe._links
    with Limiter(path.url, timeout=1.0) as other:
        assert other.peek(WIDE, "closed").remaining == WIDE.quota - 6


async def test_a_call_after_one_whose_time_was_over_keeps_its_budget(path):
    """A further call without time is not sent. The next one has its whole budget, and no more, also with a greeting."""
    path.mode = "swallow"
    pipe = AsyncPipe(lambda: Address.from_url(path.url.removesuffix("/0") + "/1"), 0.05)
    with pytest.raises(StoreError, match="timeout"):
        await pipe.call_again(pack(("PING",)), time.monotonic() - 1)
    await asyncio.sleep(0)  # whoever connects has begun by now

    with pytest.raises(StoreError, match="timeout"):
        await asyncio.wait_for(pipe.call(pack(("PING",))), 5)
    pipe.close()


def test_a_call_in_vain_takes_its_budget_and_no_tick_more(path, monkeypatch):
    """The kernel counts in ticks and is late by up to two: it waits for less, and an exact clock for the rest."""
    pipe, spans, rests = SyncPipe(lambda: Address.from_url(path.url), 0.025), [], []
    within = connection._Line._received_within
    monkeypatch.setattr(
        connection._Line, "_received_within", lambda line, seconds: (rests.append(seconds), within(line, seconds))[1]
    )
    path.mode = "swallow"
    for _ in range(5):
        began = time.monotonic()
        with pytest.raises(StoreError, match="timeout"):
            pipe.call(pack(("PING",)))
        spans.append(time.monotonic() - began)

    assert min(spans) >= 0.025
    assert len(rests) >= 5
    assert [_in_ticks(ticks * _TICK_US + 1) // _TICK_US for ticks in range(6)] == [0, 0, 1, 2, 3, 4]


def test_a_thread_that_gets_to_connect_too_late_has_its_whole_budget(server, world):
    """Its time was over before it waited for anybody: that is its own lag, and the store is asked all the same."""
    pipe, long_ago = SyncPipe(lambda: Address.from_url(server.url), 0.5), time.monotonic() - 1
    assert pipe.call(pack(("PING",)), long_ago) == b"PONG"
    pipe.close()


def test_only_waiting_takes_time_from_a_connection(monkeypatch):
    """What came although the time was over was there in time for a thread that was not late."""
    clock = [0.0]
    monkeypatch.setattr("enforcement.store.address.monotonic", lambda: clock[0])
    given = TimeToWait(10.0)

    def wait(seconds):
        clock[0] += seconds
        return given.left

    assert (given.during(lambda left: wait(4)), given.left) == (10.0, 6.0)
    clock[0] += 100  # has something else to do
    assert (given.during(lambda left: wait(7)), given.left) == (6.0, 3.0)
    with pytest.raises(TimeoutError):
        TimeToWait(0.0).during(wait)


def waits(monkeypatch, *, starved=False, answer=None):
    """Let a clock of the test go on while a connection waits. Return it, and how long each wait was."""
    began = time.monotonic()
    clock, spans = [began], []

    def within(line, seconds):
        spans.append(seconds)
        clock[0] += seconds
        return answer if clock[0] - began > 0.1 else None

    monkeypatch.setattr(connection, "monotonic", lambda: clock[0])
    monkeypatch.setattr(connection, "is_starved", lambda: starved(clock[0] - began) if callable(starved) else starved)
    monkeypatch.setattr(connection._Line, "_received_within", within)
    return clock, spans


def in_vain(pipe, clock):
    """Return how many seconds a call without a reply took."""
    began = clock[0]
    with pytest.raises(StoreError, match="timeout"):
        pipe.call(pack(("PING",)))
    return clock[0] - began


@pytest.fixture
def muted(path):
    """Give a pipe with a budget of 50 ms, to a store that gives no reply. Its first wait is the kernel's."""
    pipe = SyncPipe(lambda: Address.from_url(path.url), 0.05)
    assert pipe.call(pack(("PING",))) == b"PONG"
    path.mode = "swallow"
    yield pipe
    pipe.close()


def test_a_busy_host_waits_for_a_dead_store_once(muted, path, busy_host, monkeypatch):
    """One call lasts longer, and the next ones know that this was in vain, until the store answers again."""
    clock, _ = waits(monkeypatch, starved=True)
    first, second, third = (in_vain(muted, clock) for _ in range(3))
    muted._patience.answered = clock[0] + 1
    again = in_vain(muted, clock)

    assert [round(span) for span in (first, second, third, again)] == [2, 0, 0, 2]


def test_calls_of_a_busy_host_that_began_together_end_together(muted, busy_host, monkeypatch):
    """An outage costs the process one such span, whichever of its calls began it."""
    clock, _ = waits(monkeypatch, starved=True)
    muted._patience.since, muted._patience.answered = clock[0] - 0.4, clock[0] - 1

    assert in_vain(muted, clock) == pytest.approx(1.6)


def test_a_busy_host_is_no_slow_store(muted, busy_host, monkeypatch):
    """Others want the processor, the store perhaps among them: the reply to a call comes after its time."""
    waits(monkeypatch, starved=True, answer=b"+PONG\r\n")
    assert muted.call(pack(("PING",))) == b"PONG"


def test_a_quiet_host_waits_for_its_budget_only(muted, busy_host, monkeypatch):
    """Nobody waits for a processor, so it is the store that does not answer."""
    clock, _ = waits(monkeypatch)
    assert in_vain(muted, clock) == pytest.approx(0.05, abs=0.002)


def test_a_host_that_becomes_quiet_is_waited_for_no_longer(muted, busy_host, monkeypatch):
    """A burst that keeps all processors busy for a moment makes a dead store cost about twice that moment."""
    clock, _ = waits(monkeypatch, starved=lambda passed: passed < 0.2)
    assert 0.2 < in_vain(muted, clock) < 0.3


@pytest.mark.parametrize(("processors", "starved"), [(-1, True), (1_000_000, False)])
def test_the_kernel_says_whether_a_host_is_busy(monkeypatch, processors, starved):
    """More threads could run than there are processors. Where the kernel does not count them, no host is busy."""
    monkeypatch.setattr(connection, "_PROCESSORS", processors)
    assert connection.is_starved() == (starved and Path("/proc/loadavg").exists())


def test_a_further_call_has_what_is_left_however_late_its_thread_is(server, world, monkeypatch):
    """Between the calls of a decision, and before it sends one, a thread waits for its own host, not for the store."""
    pipe = SyncPipe(lambda: Address.from_url(server.url), 0.5)
    clock = [time.monotonic()]
    for module in ("address", "connection"):
        monkeypatch.setattr(f"enforcement.store.{module}.monotonic", lambda: clock[0])
    hung_up = connection._Line.hung_up

    def late(line):
        clock[0] += 100
        return hung_up(line)

    monkeypatch.setattr(connection._Line, "hung_up", late)

    def steps():
        replies = []
        for _ in range(3):
            replies.append((yield pack(("PING",))))
            clock[0] += 100
        return replies

    assert run_within(steps(), pipe, 0.4) == [b"PONG"] * 3
    pipe.close()


def test_connecting_is_part_of_the_budget(server, world, path):
    """A greeting that takes three fifths of it leaves too little for a call that would take as much."""
    world.client.execute_command("ACL SETUSER", "greeted", "on", ">secret", "~*", "+@all")
    path.mode, path.delay = "delay", 0.3
    limiter = Limiter(path.url.replace("redis://", "redis://greeted:secret@"), timeout=0.5)
    decision, took = timed(lambda: limiter.hit(WIDE, "k"))
    path.mode = "pass"
    limiter.close()

    assert path.hit >= 1
    assert (decision.source, decision.cause, decision.ambiguous) == ("fallback", "timeout", True)
    assert took < 0.6


def test_a_reply_in_pieces_has_no_more_time_than_a_whole_one(server, world, path):
    """Byte by byte it would take seconds; it has what a decision has."""
    limiter = Limiter(path.url, timeout=0.3)
    limiter.hit(WIDE, "k")
    path.mode, path.delay = "drip", 0.1
    decision, took = timed(lambda: limiter.hit(WIDE, "k"))
    path.mode = "pass"
    limiter.close()

    assert (decision.source, decision.cause) == ("fallback", "timeout")
    assert took < 0.4


def test_a_connection_that_took_all_the_time_is_not_tried_again():
    """Whoever cannot be reached in the budget is not reached in a second one: the decision would take two."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as callers:
        port = full.getsockname()[1]
        with contextlib.suppress(TimeoutError):
            while True:  # nobody accepts: the queue fills, and then callers are not answered
                callers.enter_context(socket.create_connection(("127.0.0.1", port), 0.1))
        limiter = Limiter(f"redis://127.0.0.1:{port}/0", timeout=0.3)
        decision, took = timed(lambda: limiter.hit(WIDE, "k"))
    # Nobody waits any more for somebody to accept.
    limiter.close()

    assert (decision.source, decision.cause, decision.ambiguous) == ("fallback", "timeout", False)
    assert took < 0.5


async def test_a_cancelled_caller_never_shifts_anothers_reply(server, world):
    """A thousand calls, a quarter of them cancelled at random: every answer is the asker's own."""
    pipe, chance = AsyncPipe(lambda: Address.from_url(server.url), 5.0), random.Random(7)

    async def ask(number: int) -> bool:
        return await pipe.call(pack(("ECHO", number))) == str(number).encode()

    tasks = [asyncio.create_task(ask(number)) for number in range(1_000)]
    for task in chance.sample(tasks, 250):
        await asyncio.sleep(0)
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(answer is True or isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert sum(answer is True for answer in answers) >= 750
    pipe.close()


async def test_three_hundred_concurrent_checks_are_no_error(server, world):
    """They share one connection, and a quota of 100 admits 100."""
    limiter = aio.Limiter(server.url, timeout=2.0)
    limit = Limit(name="hundred", quota=100, window_seconds=3_600)
    decisions = await asyncio.gather(*(limiter.hit(limit, "300") for _ in range(300)))

    assert sum(decision.allowed for decision in decisions) == 100
    assert {decision.source for decision in decisions} <= {"store", "denial_cache"}
    await limiter.close()


async def test_a_task_cancelled_inside_admit_frees_its_slot(server, world):
    """Cancellation leaves the block like an exception does."""
    limiter = aio.Limiter(server.url, timeout=2.0)
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)
    entered = asyncio.Event()

    async def hold() -> None:
        async with limiter.admit(slots, "cancelled"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    assert not (await limiter.peek(slots, "cancelled")).allowed
    task.cancel()
    await asyncio.wait([task])

    assert (await limiter.peek(slots, "cancelled")).allowed
    await limiter.close()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_task_cancelled_while_it_is_admitted_gives_back(path, times):
    """Also one that is cancelled again while it gives back, as anyio does it at every turn of the loop."""
    limiter = aio.Limiter(path.url, timeout=2.0)
    limits = [Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60), WIDE]
    key = f"cancelled-{times}"
    await limiter.peek(limits, key)
    path.only, path.delay, path.mode = b"_decide", 0.05, "delay"

    async def enter() -> None:
        async with limiter.admit(limits, key):
            raise AssertionError("entered")

    task = asyncio.create_task(enter())
    while not path.hit:
        await asyncio.sleep(0.001)
    # Now the call is under way, and its answer is not.
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    path.mode = "pass"

    async def left() -> list[int]:
        return [state.remaining for state in (await limiter.peek(limits, key)).limits]

    for _ in range(200):
        if await left() == [1, WIDE.quota]:
            break
        await asyncio.sleep(0.01)
    assert await left() == [1, WIDE.quota]
    await limiter.close()


def test_a_slot_whose_release_was_lost_is_freed_soon(server, world, path):
    """Its release is sent again in the background, long before its lifetime ends."""
    limiter = Limiter(path.url, timeout=0.5)
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=600)
    with limiter.admit(slots, "lost") as admission:
        assert admission.decision.source == "store"
        path.mode = "deaf"
    assert path.hit
    other = Limiter(server.url, timeout=1.0)
    assert not other.peek(slots, "lost").allowed
    path.mode = "pass"

    deadline = time.monotonic() + 5
    while not other.peek(slots, "lost").allowed:
        assert time.monotonic() < deadline
    limiter.close()
    other.close()


def test_a_refused_connection_says_that_nothing_was_executed():
    """It may be tried again; a lost reply may not."""
    pipe = SyncPipe(lambda: Address(port=1), 0.1)
    with pytest.raises(StoreError) as caught:
        pipe.call(pack(("PING",)))
    assert not caught.value.executed


@pytest.mark.parametrize(
    ("reply", "cause", "executed", "away"),
    [
        ("ERR Function not found", "library", False, True),
        ("LOADING Valkey is loading the dataset in memory", "loading", False, True),
        ("READONLY You can't write against a read only replica.", "readonly", False, True),
        ("OOM command not allowed when used memory > 'maxmemory'.", "oom", False, True),
        ("NOPERM User enforcer has no permissions", "auth", False, True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "reply", True, False),
    ],
)
def test_an_error_reply_says_whose_fault_it_is(reply, cause, executed, away):
    """Only what concerns the store as a whole counts towards the breaker."""
    found = trouble(reply)
    assert (found.cause, found.executed, found.away) == (cause, executed, away)


def test_a_wrong_typed_counter_spoils_its_own_limit_only(server, world):
    """Its decision falls back; others go on with the store, and the breaker stays closed."""
    limiter = Limiter(server.url, timeout=1.0)
    limiter.hit(WIDE, "broken")
    key = limiter._engine.planner.plan_in_code(WIDE, "broken").keys[0]
    world.client.delete(key)
    world.client.rpush(key, "x")

    assert [limiter.hit(WIDE, "broken").source for _ in range(5)] == ["fallback"] * 5
    assert limiter.hit(WIDE, "whole").source == "store"
    limiter.close()


def test_a_store_that_lost_its_functions_gets_them_back_within_the_call(server, world):
    """FUNCTION FLUSH under a running limiter costs no decision."""
    limiter = Limiter(server.url, timeout=1.0)
    limiter.hit(WIDE, "flush")
    world.client.function_flush()

    assert limiter.hit(WIDE, "flush").source == "store"
    limiter.close()


def test_a_pause_that_ends_the_time_to_connect_ends_its_calls():
    """It is over just before the look at the clock that would have given it more, in the same turn of the loop."""
    faults = []

    async def ask():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        link = _Link(asyncio.Event().wait, 0.2, lambda address: None)
        await asyncio.sleep(0.16)
        call = link.call(pack("PING"))  # looked at after 0.21 seconds
        await asyncio.sleep(0)
        time.sleep(0.3)
        with pytest.raises(StoreError):
            await asyncio.wait_for(call, 5)

    asyncio.run(ask())
    assert faults == []
