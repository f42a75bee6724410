"""A limiter in numbers: every decision is counted where it was made, once, and reading costs nobody anything."""

import asyncio
import os
from contextlib import closing, suppress

import pytest

from enforcement import Denied, Limit, Limiter, aio
from enforcement.latency import BOUNDS_SECONDS, Histogram
from enforcement.model.tokens import mint
from enforcement.stats import DecisionCount
from tests.enforcement.world import eventually, fixed

LIMIT = Limit(name="rate", quota=3, window_seconds=3_600)
LEASED = Limit(name="leased", algorithm="token_bucket", quota=100_000, window_seconds=3_600, consistency="leased")


def rows(stats):
    return {(row.source, row.reason): row.count for row in stats.decisions}


def test_a_new_limiter_has_done_nothing(server):
    """A snapshot can be taken before there is a connection, and makes none."""
    limiter = Limiter("redis://127.0.0.1:1/0", instance="proxy-1")
    stats = limiter.stats()

    assert (stats.instance, stats.state, stats.revision, stats.decisions) == ("proxy-1", "starting", 0, ())
    assert stats.documents_age_seconds is None
    assert stats.store_calls is None
    assert (stats.decided(), stats.lease_share) == (0, 0.0)


def test_decisions_are_counted_by_source_and_reason(limiter):
    """Three are admitted, one denied by the store, two from memory; looking and an error are no decisions."""
    for _ in range(6):
        limiter.hit(LIMIT, "k")
    limiter.hit(LIMIT, "other", costs=4)
    limiter.peek(LIMIT, "k")
    with pytest.raises(ValueError, match="costs"):
        limiter.hit(LIMIT, "k", costs=-1)

    assert rows(limiter.stats()) == {
        ("denial_cache", "limited"): 2,
        ("store", "cost_exceeds_capacity"): 1,
        ("store", "limited"): 1,
        ("store", "ok"): 3,
    }
    assert limiter.stats().decided(allowed=True) == 3
    assert limiter.stats().decided(allowed=False) == 4


def test_requests_that_a_shadow_limit_would_deny_are_counted(world, limiter):
    """They are among the allowed ones. What an enforced limit denies is no would-deny."""
    secret = world.everything(fixed(5), fixed(2, name="shadow", mode="shadow"))
    for _ in range(8):
        limiter.check(secret)

    stats = limiter.stats()
    assert (stats.decided(allowed=True), stats.decided(allowed=False), stats.would_deny) == (5, 3, 3)


def test_refusals_and_what_falls_under_no_limit_are_counted(world, limiter):
    """A token that is not known, one that is revoked, and one without limits: decided by the documents."""
    free, revoked = mint("live"), world.everything(fixed(5), revoked=True)
    world.publish(tokens={free: world.token()})
    limiter.check(free)
    for call in (limiter.check, limiter.check):
        call(revoked)
    with pytest.raises(Denied), limiter.admit("sg_live_nonsense"):
        pass

    assert rows(limiter.stats()) == {
        ("documents", "ok"): 1,
        ("documents", "revoked"): 2,
        ("documents", "unknown_token"): 1,
    }


def test_admissions_are_counted_once(limiter):
    """Settling and leaving are no decisions of their own."""
    for _ in range(4):
        with suppress(Denied), limiter.admit(LIMIT, "k") as admission:
            admission.settle(1)

    assert rows(limiter.stats()) == {("store", "ok"): 3, ("store", "limited"): 1}


def test_leased_decisions_are_counted_without_counting_each(limiter):
    """Whatever a request costs, it is one decision; permits are told beside it, and none is lost when a lease ends."""
    asked = 0
    while limiter.stats().decided(source="lease") < 200:
        limiter.hit(LEASED, "k", costs=1 + asked % 2)
        asked += 1
        assert asked < 20_000
    during = limiter.stats()
    assert eventually(lambda: limiter.stats().lease_permits_held == 0)
    after = limiter.stats()

    assert during.decided() == after.decided() == asked
    assert after.lease_permits_used == during.lease_permits_used
    assert 1.4 < after.lease_permits_used / after.decided(source="lease") < 1.6
    assert after.lease_share == after.decided(source="lease") / asked


def test_documents_of_which_the_store_spoke_are_young(world, limiter):
    """Their age says since when nobody has confirmed them; it is known from the first time on."""
    limiter.check(world.everything(fixed(5)))

    assert eventually(lambda: limiter.stats().documents_age_seconds is not None)
    assert limiter.stats().documents_age_seconds < 5
    assert limiter.stats().revision == 1
    assert limiter.stats().fleet_size == 1


def test_an_outage_is_told_with_its_cause(own_server):
    """The breaker, what failed and why, what was decided without the store and what that owes."""
    with closing(Limiter(own_server.url)) as limiter:
        limiter.hit(LIMIT, "k")
        own_server.kill()
        assert eventually(lambda: limiter.hit(LIMIT, "k2").source == "fallback" and limiter.stats().servers_away)
        away = limiter.stats()
        own_server.restart()
        assert eventually(lambda: not limiter.stats().servers_away)

    assert (away.state, away.servers_away, away.outages) == ("degraded", 1, 1)
    # A call that may have run is owed by itself.
    assert 1 <= away.journal_entries <= away.decided(source="fallback")
    assert set(away.store_failures) <= {"connection", "timeout"}
    assert away.decided(source="fallback") >= 1
    assert limiter.stats().journal_entries == 0


def test_calls_are_timed_for_those_who_ask(limiter):
    """Nothing is measured before; then every call is in one bucket, and a listener hears of it."""
    heard = []
    limiter.hit(LIMIT, "k")
    limiter.time_store_calls(heard.append)
    for _ in range(5):
        limiter.peek(LIMIT, "k")
    calls = limiter.stats().store_calls

    assert sum(calls.counts) == len(heard) == 5
    assert calls.total_seconds == pytest.approx(sum(heard))
    assert calls.bounds_seconds == BOUNDS_SECONDS
    assert len(calls.counts) == len(BOUNDS_SECONDS) + 1


async def test_calls_of_a_loop_are_timed_until_they_are_answered(server, world):
    """Also those that share a round trip, and those whose task was cancelled."""
    limiter = aio.Limiter(server.url, timeout=1.0)
    limiter.time_store_calls()
    await asyncio.gather(*(limiter.hit(LIMIT, f"k{i}") for i in range(20)))
    stats = limiter.stats()
    await limiter.close()

    assert sum(stats.store_calls.counts) == 20
    assert stats.decisions == (DecisionCount("store", "ok", 20),)


def test_a_call_that_fails_is_timed_too(own_server):
    """A store that does not answer is what one wants to see: it took the whole budget."""
    with closing(Limiter(own_server.url, timeout=0.05)) as limiter:
        limiter.hit(LIMIT, "k")
        limiter.time_store_calls()
        own_server.freeze()
        limiter.hit(LIMIT, "k")
        calls = limiter.stats().store_calls
        own_server.thaw()

    assert isinstance(calls, Histogram)
    assert calls.total_seconds > 0.03  # a budget of 0.05, which the kernel keeps in steps of its own
    assert sum(calls.counts[-4:]) == 1


def test_a_forked_child_tells_its_own_numbers(limiter):
    """What the parent decided is the parent's to tell: whoever adds up processes counts nothing twice."""
    limiter.hit(LIMIT, "k")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        limiter.hit(LIMIT, "k")
        os.write(writer, b"%d" % limiter.stats().decided())
        os._exit(0)
    os.waitpid(child, 0)

    assert os.read(reader, 10) == b"1"
    assert limiter.stats().decided() == 1
