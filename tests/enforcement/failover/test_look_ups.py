"""One decision has one budget, however many calls it takes, and an unknown token has one of its own."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.model.tokens import mint
from enforcement.store.breaker import FAILURES_IN_A_ROW
from tests.enforcement.faults import FaultyPath
from tests.enforcement.stalls import timed
from tests.enforcement.world import World, eventually, fixed, look_ups

WIDE = Limit(name="wide", quota=1_000_000, window_seconds=86_400)
BUDGET = 0.3
LATE = 0.25
"""For each reply: one call fits into the budget, two do not."""
TOKENS, AT_ONCE = 300, 30


@pytest.fixture
def path(own_server):
    """Give a way to the store that a test may spoil."""
    path = FaultyPath(own_server.port)
    yield path
    path.close()


@pytest.fixture
def world(own_server):
    return World(own_server.url)


def published(world, count):
    """Publish a policy and so many tokens, and return their secrets."""
    secrets = [mint("live") for _ in range(count)]
    documents = {"global": {"schema": 1, "policy": None}, **world.policy("api", fixed(1_000)), **world.project()}
    world.publish(documents, {secret: world.token("pol_api") for secret in secrets})
    return secrets


class Spoilt:
    """The ways in which a decision takes more than one call."""

    @staticmethod
    def flushed(server, client):
        client.function_flush()

    @staticmethod
    def readonly(server, client):
        client.replicaof("127.0.0.1", 1)


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize("how", ["flushed", "readonly"])
def test_further_calls_have_what_the_first_one_left(own_server, world, path, how):
    """Missing functions are loaded and a replica is left within one budget, or the decision is made here."""
    with Limiter(path.url, timeout=BUDGET) as limiter:
        assert limiter.hit(WIDE, "k").source == "store"
        limiter._engine.agent.stop()  # it would load the functions
        path.delay, path.mode = LATE, "delay"
        getattr(Spoilt, how)(own_server, world.client)
        decision, took = timed(lambda: limiter.hit(WIDE, "k"))
        path.mode = "pass"
        world.client.replicaof("NO", "ONE")

    assert decision.source == "fallback"
    assert LATE / 2 < took < BUDGET + LATE / 2


@pytest.mark.usefixtures("no_documents")
@pytest.mark.parametrize("how", ["flushed", "readonly"])
async def test_further_calls_of_tasks_have_what_the_first_one_left(own_server, world, path, how):
    """The same in an event loop."""
    async with aio.Limiter(path.url, timeout=BUDGET) as limiter:
        assert (await limiter.hit(WIDE, "k")).source == "store"
        await asyncio.to_thread(limiter._engine.agent.stop)
        path.delay, path.mode = LATE, "delay"
        getattr(Spoilt, how)(own_server, world.client)
        began = time.monotonic()
        decision = await limiter.hit(WIDE, "k")
        took = time.monotonic() - began
        path.mode = "pass"
        world.client.replicaof("NO", "ONE")

    assert decision.source == "fallback"
    assert LATE / 2 < took < BUDGET + LATE / 2


@pytest.mark.parametrize(("lookup", "reason"), [(0.6, "ok"), (0.3, "degraded_denied")])
def test_an_unknown_token_has_a_budget_of_its_own(world, path, lookup, reason):
    """Its document comes later than a decision may be, and the decision after it has its whole budget."""
    [secret] = published(world, 1)
    with Limiter(path.url, timeout=BUDGET, lookup=lookup) as limiter:
        path.delay, path.mode = (LATE if reason == "ok" else 0.4), "delay"
        decision, took = timed(lambda: limiter.check(secret))
        path.mode = "pass"

    assert decision.reason == reason
    assert took < lookup + BUDGET + LATE / 2


def test_a_token_that_does_not_exist_is_known_within_its_budget(world, path):
    """Its reply is later than a decision may be, and comes within the budget of the look-up."""
    published(world, 1)
    with Limiter(path.url, timeout=0.025, lookup=0.6) as limiter:
        path.delay, path.mode = LATE, "delay"
        decision, took = timed(lambda: limiter.check(mint("live")))
        path.mode = "pass"

    assert decision.reason == "unknown_token"
    assert took < 0.6


def reads(client):
    """Return how many documents of tokens the store was asked for."""
    return client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]


def test_threads_that_show_the_same_token_look_it_up_once(world, path):
    """Thirty wait for one reply."""
    [secret] = published(world, 1)
    with Limiter(path.url, timeout=BUDGET, lookup=5.0) as limiter, ThreadPoolExecutor(AT_ONCE) as threads:
        path.delay, path.mode = LATE, "delay"
        together, before = threading.Barrier(AT_ONCE), reads(world.client)
        plans = list(threads.map(lambda _: together.wait() >= 0 and limiter.find_plan(secret, None), range(AT_ONCE)))
        path.mode = "pass"

        assert len(set(map(id, plans))) == 1
        assert reads(world.client) - before == 1


async def test_tasks_that_show_the_same_token_look_it_up_once(world, path):
    """Also if the one that began is cancelled."""
    [secret] = published(world, 1)
    async with aio.Limiter(path.url, timeout=BUDGET, lookup=5.0) as limiter:
        path.delay, path.mode = LATE, "delay"
        before = reads(world.client)
        tasks = [asyncio.create_task(limiter.find_plan(secret, None)) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        plans = await asyncio.gather(*tasks[1:])
        path.mode = "pass"

        assert tasks[0].cancelled()
        assert len(set(map(id, plans))) == 1
        assert reads(world.client) - before == 1


def test_a_thread_that_ends_in_a_look_up_leaves_nobody_waiting(world, path, monkeypatch):
    """Whatever ends it, the others are answered, and the next request asks again."""
    [secret] = published(world, 1)
    with Limiter(path.url, timeout=BUDGET, lookup=5.0) as limiter, ThreadPoolExecutor(2) as threads:
        entered, leave = threading.Event(), threading.Event()

        def interrupted(command, deadline):
            entered.set()
            leave.wait(10)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(limiter._lookup_pipe, "call_again", interrupted)
            first = threads.submit(limiter.check, secret)
            assert entered.wait(10)
            second = threads.submit(limiter.check, secret)
            assert eventually(lambda: second.running())
            leave.set()
            with pytest.raises(KeyboardInterrupt):
                first.result()
            assert second.result().reason in ("degraded_denied", "ok")

        assert limiter.check(secret).reason == "ok"


def test_fresh_tokens_are_no_outage(world, path):
    """Three hundred, thirty at once, over a path that is slower than a decision may be: each is known."""
    secrets = published(world, TOKENS)
    with Limiter(path.url, timeout=0.025, lookup=2.0) as limiter, ThreadPoolExecutor(AT_ONCE) as threads:
        path.delay, path.mode = 0.03, "delay"
        plans = list(threads.map(lambda secret: limiter.find_plan(secret, None), secrets))
        stats, path.mode = limiter.stats(), "pass"

    assert sum(hasattr(plan, "reason") for plan in plans) == 0
    assert stats.outages == 0


@pytest.mark.parametrize("delay", [0.03, 0.1])
def test_fresh_tokens_pass_while_the_store_is_too_slow_for_decisions(world, path, delay):
    """It answers look-ups in time: each token is known, and each request is decided."""
    secrets = published(world, 2 * AT_ONCE)
    with Limiter(path.url, timeout=0.025, lookup=2.0) as limiter, ThreadPoolExecutor(AT_ONCE) as threads:
        path.delay, path.mode = delay, "delay"
        decisions = list(threads.map(limiter.check, secrets))
        stats, path.mode = limiter.stats(), "pass"

    assert {decision.reason for decision in decisions} == {"ok"}
    assert stats.outages == 1


async def test_fresh_tokens_of_tasks_pass_while_the_store_is_too_slow_for_decisions(world, path):
    """The same in an event loop."""
    secrets = published(world, 2 * AT_ONCE)
    async with aio.Limiter(path.url, timeout=0.025, lookup=2.0) as limiter:
        path.delay, path.mode = 0.03, "delay"
        decisions = [await limiter.check(secret) for secret in secrets[:AT_ONCE]]
        path.mode = "pass"

    assert {decision.reason for decision in decisions} == {"ok"}
    assert limiter.stats().outages == 1


def test_look_ups_that_fail_leave_decisions_with_the_store_and_come_back(world, path):
    """They have connections of their own. After a few nobody waits for one, until one works again."""
    known, *others = published(world, 30)
    with Limiter(path.url, timeout=5.0, lookup=0.1) as limiter:
        assert limiter.check(known).source == "store"
        asked = look_ups(limiter)
        path.only, path.mode = b"MGET", "swallow"
        decisions = [(limiter.check(secret), limiter.check(known)) for secret in others]
        waited = len(asked)
        path.mode = "pass"
        healed = eventually(lambda: limiter.check(others[0]).reason == "ok")
        stats = limiter.stats()

    assert {decision.reason for decision, _ in decisions} == {"degraded_denied"}
    assert waited == FAILURES_IN_A_ROW
    assert [decision.source for _, decision in decisions] == ["store"] * len(decisions)
    assert healed
    assert stats.outages == 0


def test_a_store_that_is_gone_costs_one_look_up(world, own_server):
    """Decisions failed before it, so that one that fails shows that nothing is answered; later it is asked again."""
    known, *others = published(world, 9)
    with Limiter(own_server.url, timeout=0.05, lookup=0.3) as limiter:
        limiter.check(known)
        asked = look_ups(limiter)
        own_server.freeze()
        while not limiter.stats().outages:
            limiter.check(known)
        time.sleep(1.1)  # since the last look-up that was answered
        for secret in others:
            limiter.check(secret)
        waited = len(asked)
        own_server.thaw()
        healed = eventually(lambda: limiter.check(others[0]).source == "store")

    assert waited == 1
    assert healed
