"""
Outages under the load of real processes, judged by the checker that we ship: frozen, slow, lying, and back again.

Two cores carry all of this, so spans have generous margins; counts have none.
"""

import asyncio
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.failover import in_doubt
from enforcement.store import connection, errors
from enforcement.store.client import connect
from enforcement.store.errors import StoreError
from tests.enforcement.faults import FaultyPath
from tests.enforcement.fleet import fleet
from tests.enforcement.moments import commands, commands_in
from tests.enforcement.world import eventually
from tests.scale import scale

# At which point of a call a store is lost is chance, so that a proof loses it more than once.
pytestmark = pytest.mark.proof(times=5)

WIDE = [{"name": "rate", "algorithm": "fixed_window", "quota": 1_000_000, "window_seconds": 86_400}]
# On a busy machine a process may lose the store once more before it has decided anything there.
GENEROUS = {"margin_ms": 200.0, "vain": 10}
# One freeze that is over before anybody notices, one of a few time budgets, and one of many. Whoever waits a budget at
# every decision of an outage, or returns to a store that is frozen again, is seen in each of the longer ones.
FREEZES = scale((0.01, 0.15, 0.6), (0.01, 0.05, 0.15, 0.6, 1.2, 3.0))
PROCESSES = scale(2, 6)
HERD = scale(4, 16)


@pytest.fixture
def path(own_server):
    """Give a way to the store that a test may spoil."""
    path = FaultyPath(own_server.port)
    yield path
    path.close()


def records(ledgers, since, until):
    """Return the decisions that were begun and over between two instants."""
    begin, end = since * 1_000_000, until * 1_000_000
    return [it for ledger in ledgers for it in ledger.records if begin <= it.started_at_us and it.ended_at_us <= end]


def sources(ledgers, since, until):
    """Return by whom these were made."""
    return {record.source for record in records(ledgers, since, until)}


def test_freezes_of_any_length_cost_a_few_time_budgets(own_server):
    """
    Shorter than the budget, about as long, and longer: no decision waits beyond it, at most five of a process ask in
    vain, and no request is charged that nobody admitted or left without an answer.
    """
    frozen = []
    with fleet(
        own_server.url,
        WIDE,
        PROCESSES,
        *("--fleet", str(PROCESSES), "--seconds", "60", "--pause", "0.005", "--timeout", "0.025"),
    ) as load:
        load.go()
        time.sleep(0.2)
        for seconds in FREEZES:
            own_server.freeze()
            since = time.time()
            time.sleep(seconds)
            frozen.append((since + 0.05, time.time()))
            own_server.thaw()
            time.sleep(0.1)
            load.await_back()
        load.end_when_back()
        ledgers = load.ledgers()

        assert all("store" not in sources(ledgers, *span) for span in frozen if span[1] - span[0] > 0.05)
        assert sources(ledgers, *frozen[-1]) == {"fallback"}
        assert load.broken(own_server.url, **GENEROUS, back_at_us=int(frozen[-1][1] * 1_000_000)) == []


@pytest.mark.parametrize("modes", [("delay", "swallow", "garble"), ("cut", "drip", "deaf")], ids="-".join)
def test_a_path_that_lies_is_left_and_found_again(own_server, path, modes):
    """Replies late, lost, mangled, cut off, byte by byte, or requests lost: each is an outage, and each ends."""
    path.delay = 0.6  # also more than a busy host is waited for
    spans = []
    with fleet(path.url, WIDE, 2, "--fleet", "2", "--seconds", "60", "--pause", "0.005", "--timeout", "0.1") as load:
        load.go()
        time.sleep(0.2)
        for mode in modes:
            path.hit, path.mode = 0, mode
            load.await_back("fallback")
            # One decision may have failed before the breaker is open.
            time.sleep(0.3)
            began, before = time.time(), load.written(b'"source"')
            assert eventually(lambda before=before: load.written(b'"source"') > before + 10, 20.0)
            spans.append((began, time.time()))
            assert path.hit, mode
            path.mode = "pass"
            load.await_back()
        load.end_when_back()
        ledgers = load.ledgers()

        assert [sources(ledgers, *span) for span in spans] == [{"fallback"}] * len(modes)
        assert load.broken(own_server.url, **GENEROUS) == []


def test_a_call_that_may_have_run_is_not_sent_again(own_server, path, monkeypatch):
    """Two requests reach the store, whose replies are lost: two are charged. Control: sent again, it is four."""
    assert charged_by_lost_replies(own_server, path, "once") == 2

    never = StoreError("connection", executed=False)
    monkeypatch.setattr(connection.SyncPipe, "_broken", lambda connection, line, exc: line.sock.close() or never)
    assert charged_by_lost_replies(own_server, path, "twice") == 4


def charged_by_lost_replies(server, path, key):
    """Ask twice while replies are cut off, for what is denied without the store, and return what was charged."""
    limit = Limit(name="deny", quota=100, window_seconds=3_600, on_store_failure="deny")
    path.mode = "pass"
    limiter = Limiter(path.url, timeout=0.5)
    limiter.peek(limit, key)
    path.hit, path.mode = 0, "cut"  # at once, so that there is time to send it again
    assert [limiter.hit(limit, key).source for _ in range(2)] == ["fallback"] * 2
    assert path.hit >= 2
    limiter.close()
    other = Limiter(server.url, timeout=1.0)
    used = 100 - other.peek(limit, key).remaining
    other.close()
    return used


HOW, ALGORITHMS = ("freeze", "swallow", "delay", "garble"), ("fixed_window", "sliding_log", "token_bucket")


# What becomes of the call does not depend on the algorithm, nor does the charge on what became of the call.
@pytest.mark.parametrize(
    ("how", "algorithm"),
    scale(
        [*((how, ALGORITHMS[0]) for how in HOW), *(("freeze", algorithm) for algorithm in ALGORITHMS[1:])],
        [(how, algorithm) for how in HOW for algorithm in ALGORITHMS],
    ),
)
def test_a_call_without_an_answer_is_charged_once(own_server, path, monkeypatch, how, algorithm):
    """The store has it, and charges it: nobody pays it once more. Control: if nothing is taken for executed, it is."""
    limit = Limit(name="once", algorithm=algorithm, quota=1_000, window_seconds=86_400)
    path.delay = 0.5
    if how == "swallow":  # nobody needs a second to see that no reply comes
        monkeypatch.setattr(in_doubt, "PATIENCE_SECONDS", 0.3)

    charged, _ = charged_after_calls_in_vain(own_server, path, limit, how, "once")
    monkeypatch.setattr(errors, "TAKEN_FOR_EXECUTED", frozenset())
    control, vain = charged_after_calls_in_vain(own_server, path, limit, how, "control")

    assert (charged, control) == (21, 21 + vain)


def charged_after_calls_in_vain(server, path, limit, how, key):
    """Call once, and twenty times while no answer comes; return what was charged in the end, and how many waited."""
    limiter = Limiter(path.url, timeout=0.2)
    assert limiter.hit(limit, key).source == "store"
    spoil, mend = (server.freeze, server.thaw) if how == "freeze" else (partial(turn, path, how), partial(turn, path))
    spoil()
    decisions = [limiter.hit(limit, key) for _ in range(20)]
    mend()
    assert [decision.source for decision in decisions if decision.allowed] == ["fallback"] * 20
    vain = sum(decision.ambiguous for decision in decisions)
    assert 1 <= vain <= 5  # the rest are told by whoever found the store away, which may be the background
    assert eventually(lambda: limiter.hit(limit, key, 0).source == "store" and not limiter._engine.fallback.owes())
    other = Limiter(server.url, timeout=1.0)
    used = limit.quota - other.peek(limit, key).remaining
    other.close()
    limiter.close()
    return used, vain


@pytest.mark.usefixtures("no_documents")
def test_a_call_that_a_frozen_store_died_with_is_charged(own_server, monkeypatch):
    """Its connection ends without an answer, so the process pays it. Control: who takes it for executed forgets it."""
    charged, vain = charged_after_a_store_that_died(own_server)
    assert (charged, 1 <= vain <= 5) == (20, True)

    monkeypatch.setattr(in_doubt, "charged", lambda answer: True)
    charged, vain = charged_after_a_store_that_died(own_server)
    assert (charged + vain, 1 <= vain <= 5) == (20, True)


def charged_after_a_store_that_died(server):
    """Ask twenty times while the store is frozen, kill it, start it empty; return what is charged, and what waited."""
    limit = Limit(name="died", quota=1_000, window_seconds=3_600)
    with Limiter(server.url, timeout=0.05) as limiter:
        assert limiter.peek(limit, "k").source == "store"
        server.freeze()
        vain = sum(limiter.hit(limit, "k").ambiguous for _ in range(20))
        server.kill()
        server.restart(empty=True)
        assert eventually(lambda: limiter.peek(limit, "k").source == "store" and not limiter._engine.fallback.owes())
        return limit.quota - limiter.peek(limit, "k").remaining, vain


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize(("ends", "quota"), [("thaws", 1_000), ("dies", 1_000), ("dies", 20)])
async def test_calls_of_tasks_without_an_answer_are_charged_once(own_server, ends, quota):
    """
    Thirty wait on one connection that is frozen; each that passes is charged, whether the store lives to execute it or
    not, and whether others are denied, whose answers nobody waits for.
    """
    limit = Limit(name="tasks", quota=quota, window_seconds=3_600)
    async with aio.Limiter(own_server.url, timeout=0.05) as limiter:
        assert (await limiter.peek(limit, "k")).source == "store"
        own_server.freeze()
        decisions = await asyncio.gather(*(limiter.hit(limit, "k") for _ in range(30)))
        if ends == "thaws":
            own_server.thaw()
        else:
            own_server.kill()
            own_server.restart(empty=True)
        async with asyncio.timeout(10):
            while (await limiter.peek(limit, "k")).source != "store" or limiter._engine.fallback.owes():
                await asyncio.sleep(0.01)
        used = limit.quota - (await limiter.peek(limit, "k")).remaining

    assert all(decision.ambiguous for decision in decisions)
    assert used == sum(decision.allowed for decision in decisions) == min(30, quota)


def turn(path, mode="pass"):
    """Have the path do something else from now on."""
    path.mode = mode


@pytest.mark.usefixtures("no_documents")
def test_a_failure_that_opens_nothing_is_made_good(own_server):
    """One connection breaks: its request is admitted here, and charged as soon as the store decides again."""
    limiter, limit = Limiter(own_server.url, timeout=0.5), Limit(name="blip", quota=100, window_seconds=86_400)
    assert limiter.hit(limit, "k").source == "store"
    limiter._pipe._idle[0].sock.shutdown(socket.SHUT_RDWR)

    assert [limiter.hit(limit, "k").source for _ in range(2)] == ["fallback", "store"]
    assert eventually(lambda: limiter.peek(limit, "k").remaining == 97)
    assert limiter.stats().outages == 0
    limiter.close()


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_admitted_here_and_cancelled_is_not_charged(own_server, path, algorithm):
    """One call fails, and its request is cancelled before its charge is replayed: nothing of it stays."""
    limit = Limit(name="cancelled", algorithm=algorithm, quota=100, window_seconds=86_400)
    with Limiter(path.url, timeout=0.5) as limiter:
        assert limiter.hit(limit, "k").source == "store"
        limiter._pipe._idle[0].sock.shutdown(socket.SHUT_RDWR)
        with limiter.admit(limit, "k", 5) as admission:
            assert admission.decision.source == "fallback"
            admission.cancel()
        assert eventually(lambda: not limiter._engine.fallback.owes())
        assert limiter.peek(limit, "k").remaining == 99


def test_a_fleet_does_not_come_back_as_a_herd(own_server):
    """In the first moments after its return a store has no more than twice the commands of as many before."""
    client = connect(own_server.url, timeout=5.0)
    with fleet(
        own_server.url,
        WIDE,
        HERD,
        *("--fleet", str(HERD), "--seconds", "60", "--pause", "0.01", "--timeout", "0.025"),
    ) as load:
        load.go()
        time.sleep(0.2)
        steady, moments = commands_in(client, at_least=scale(100, 1_000))
        own_server.freeze()
        time.sleep(max(0.75, 1.5 * moments))
        own_server.thaw()
        back_at = time.time()
        time.sleep(moments)
        first = commands(client)
        load.end_when_back()
        broken = load.broken(own_server.url, **GENEROUS, back_at_us=int(back_at * 1_000_000))
    client.close()

    assert first <= 2 * steady
    assert broken == []


QUOTA, SHORT = 60, {"algorithm": "fixed_window", "window_seconds": 1}
RULES = ("local", "allow", "deny")


def test_windows_of_an_outage_hold_their_bounds_by_each_rule(own_server):
    """
    Killed for several windows: within it six instances admit L + E of a ``local`` limit, cut by it 2 L + E, each its
    share; all of an ``allow`` one, none of a ``deny`` one. Control: what ``allow`` admits breaks these bounds.
    """
    options = ("--fleet", "6", "--seconds", "60", "--pause", "0.004", "--timeout", "0.025")
    with ExitStack() as stack:
        limits = {rule: {"name": rule, "quota": QUOTA, "on_store_failure": rule, **SHORT} for rule in RULES}
        # All start before the first is waited for, since each waits for all.
        loads = dict(zip(RULES, _started(stack, own_server.url, limits, (4, 1, 1), options), strict=True))
        for load in loads.values():
            load.go()
        time.sleep(0.3 + (0.5 - time.time()) % 1)
        own_server.kill()  # before the end of a window, so that two whole ones follow soon
        killed_at = time.time()
        time.sleep(2.5)
        own_server.start()
        back_at = time.time()
        for load in loads.values():
            load.end_when_back()
        ledgers = {rule: load.ledgers() for rule, load in loads.items()}
        judged = {rule: loads[rule].broken(**GENEROUS, fleet=6, back_at_us=int(back_at * 1e6)) for rule in RULES}
        control = loads["allow"].broken(**GENEROUS, fleet=6, limits={"allow": Limit(**limits["local"])})

    # A denial that the store gave is remembered for a quarter of a second at most.
    away = {rule: records(ledgers[rule], killed_at + 0.5, back_at) for rule in RULES}
    assert {record.source for some in away.values() for record in some} == {"fallback"}
    assert {record.allowed for record in away["allow"]} == {True}
    assert {(record.allowed, record.reason) for record in away["deny"]} == {(False, "degraded_denied")}
    windows = Counter(record.decided_at_us // 1_000_000 for record in away["local"] if record.allowed)
    # Each share is 10, and four of six instances ask.
    assert sorted(windows.values())[-2:] == [40, 40]
    assert judged == {rule: [] for rule in RULES}
    assert {claim.what for claim in control} >= {
        "local: admitted in a window without the store",
        "local: admitted by one process alone",
    }


def _started(stack, url, limits, sizes, options):
    with ThreadPoolExecutor(len(sizes)) as pool:
        made = [
            pool.submit(stack.enter_context, fleet(url, [limits[rule]], size, *options, name=rule))
            for rule, size in zip(limits, sizes, strict=True)
        ]
        return [future.result() for future in made]
