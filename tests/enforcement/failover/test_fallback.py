"""A store that is frozen, killed or comes back empty, under real processes; each with a control that shows the harm."""

import time

import pytest

from enforcement import Limit, Limiter
from enforcement.failover.replay import JournalReplay
from enforcement.model.tokens import mint
from tests.enforcement.fleet import fleet
from tests.enforcement.world import World, eventually, fixed

# At which point of a call a store is lost is chance, so that a proof loses it more than once.
pytestmark = [pytest.mark.proof(times=5), pytest.mark.usefixtures("documents")]

HOUR = 3_600
QUOTA = 100
LIMIT = [{"name": "rate", "quota": QUOTA, "window_seconds": HOUR}]


def during(ledger, since):
    """Return the decisions begun after an instant."""
    return [line for line in ledger if line.at > since]


def used_in_store(url, spec):
    """Return how many permits the store has charged."""
    limiter = Limiter(url, timeout=1.0)
    limit = Limit(**spec)
    left = limiter.peek(limit, "k").remaining
    limiter.close()
    return limit.quota - left


def freeze_under_load(server, timeout):
    """Let 4 processes ask, freeze the store longer than a busy host waits, and return the ledger and the instant."""
    with fleet(
        server.url, LIMIT, 4, "--fleet", "4", "--seconds", "60", "--pause", "0.01", "--timeout", timeout
    ) as hammers:
        hammers.go()
        time.sleep(0.2)
        server.freeze()
        frozen_at = time.time()
        time.sleep(1.0)
        server.thaw()
        time.sleep(0.3)
        for process in hammers.processes:
            process.terminate()
        return hammers.ledger(), frozen_at


def test_a_frozen_store_costs_each_process_a_few_time_budgets(own_server):
    """No decision waits longer than its budget, few wait at all, and the quota holds over the outage."""
    ledger, frozen_at = freeze_under_load(own_server, "0.025")
    slow = [line for line in during(ledger, frozen_at) if line.took_ms > 15]

    assert "fallback" in {line.source for line in ledger}
    # T is 25 ms; 100 ms are for a scheduler that has two cores for all of this.
    assert max(line.took_ms for line in ledger) < 25 + 100
    assert all(sum(line.process == number for line in slow) <= 5 for number in range(4))
    assert sum(line.allowed for line in ledger if line.source == "store") <= QUOTA
    for number in range(4):
        own = [line for line in ledger if line.process == number]
        assert sum(line.allowed for line in own if line.source == "fallback") <= share(ledger, own)


def share(ledger, own):
    """Return what one of four processes may admit alone: its part of what it was told remains, before it was alone."""
    alone_at = min(line.at for line in own if line.source == "fallback")
    told_at_us = max(line.decided_at_us for line in own if line.source == "store" and line.at < alone_at)
    used = sum(it.allowed for it in ledger if it.source == "store" and it.decided_at_us <= told_at_us)
    return max(1, (QUOTA - used) // 4)


def test_control_without_a_time_budget_the_same_freeze_holds_requests_up(own_server):
    """The fault is real: with two seconds of patience decisions wait for the whole of it."""
    ledger, _ = freeze_under_load(own_server, "2.0")

    assert max(line.took_ms for line in ledger) > 800


def test_a_killed_store_is_used_again_and_what_was_admitted_is_charged(own_server):
    """Afterwards decisions come from the store, and its count has every permit that was admitted without it."""
    limit = [{"name": "rate", "quota": 100_000, "window_seconds": HOUR}]
    with fleet(own_server.url, limit, 4, "--seconds", "60", "--pause", "0.01", "--timeout", "0.025") as hammers:
        hammers.go()
        time.sleep(1.2)  # more than a second, so that the append-only file has what came before
        own_server.freeze()
        time.sleep(0.2)
        own_server.kill()
        time.sleep(0.6)
        own_server.start()
        back_at = time.time()
        hammers.end_when_back()
        ledger = hammers.ledger()
    locally = sum(line.allowed for line in ledger if line.source == "fallback")
    last = {line.process: line.source for line in ledger}

    assert locally > 50
    assert set(last.values()) == {"store"}
    assert all("store" in {x.source for x in during(ledger, back_at) if x.process == n} for n in range(4))
    # The file is written every second: what the store itself admitted in the last one may be lost, no more.
    lost = sum(line.allowed for line in ledger if line.source == "store") - (
        used_in_store(own_server.url, limit[0]) - locally
    )
    assert -20 <= lost <= 450


def test_control_without_the_journal_the_outage_is_forgotten(own_server, monkeypatch):
    """Paying is what makes it good: a recovery that does not pay leaves the store with less than was admitted."""
    admitted = outage_of_one_process(own_server)
    assert used_in_store(own_server.url, LIMIT[0]) == admitted

    monkeypatch.setattr(JournalReplay, "run", lambda replay, ready, most=None: True)
    monkeypatch.setattr(JournalReplay, "owed_to", lambda replay, keys: [])
    admitted += outage_of_one_process(own_server)
    assert used_in_store(own_server.url, LIMIT[0]) < admitted


def outage_of_one_process(server):
    """Ask 5 times with the store and 5 times while it is frozen; return what was admitted, once all is well again."""
    limiter = Limiter(server.url, timeout=0.1)
    limit = Limit(**LIMIT[0])
    admitted = sum(limiter.hit(limit, "k").allowed for _ in range(5))
    limiter._engine.health.breaker.trip("test")
    admitted += sum(limiter.hit(limit, "k").allowed for _ in range(5))
    assert eventually(lambda: not limiter._engine.health.breaker.open)
    limiter.close()
    return admitted


def test_a_share_is_one_however_often_the_store_goes(own_server):
    """It is used up in the first outage of a window; until the store says more, later ones have nothing of it left."""
    limit = Limit(name="rate", quota=10, window_seconds=HOUR)
    with Limiter(own_server.url, timeout=0.1) as limiter:
        assert limiter.peek(limit, "k").remaining == 10
        admitted = [in_an_outage(limiter, limit) for _ in range(3)]
        assert admitted == [10, 0, 0]
        limiter.reset(limit, "k")
        assert in_an_outage(limiter, limit) == 10
        limiter.reset(limit, "k")
        assert limiter.hit(limit, "k", 4).remaining == 6
        assert in_an_outage(limiter, limit) == 6


def in_an_outage(limiter, limit):
    """Ask 20 times while the store is away and see it back; return what was admitted."""
    limiter._engine.health.breaker.trip("test")
    admitted = sum(limiter.hit(limit, "k").allowed for _ in range(20))
    assert eventually(lambda: not limiter._engine.health.breaker.open)
    return admitted


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "sliding_log", "token_bucket"])
def test_what_the_store_charged_is_given_back_when_it_returns(own_server, algorithm):
    """Cancelled, or settled with less, while the store is away; in it nothing stays that was not used."""
    limit = Limit(name="rate", algorithm=algorithm, quota=100, window_seconds=HOUR)
    with Limiter(own_server.url, timeout=0.1) as limiter:
        with limiter.admit(limit, "k", 7) as cancelled, limiter.admit(limit, "k", 8) as settled:
            assert (cancelled.decision.source, settled.decision.source) == ("store", "store")
            limiter._engine.health.breaker.trip("test")
            cancelled.cancel()
            settled.settle(3)
        assert eventually(lambda: not limiter._engine.health.breaker.open)
        assert limiter.peek(limit, "k").remaining == 97


def test_what_passed_alone_is_charged_by_a_limiter_that_is_closed(own_server):
    """The store is back, and was not found again yet."""
    limit = Limit(name="rate", quota=10, window_seconds=HOUR)
    limiter = Limiter(own_server.url, timeout=0.1)
    limiter.start()
    limiter._engine.health.breaker.trip("test")
    assert limiter.hit(limit, "k", 3).source == "fallback"
    limiter.close()

    with Limiter(own_server.url, timeout=1.0) as other:
        assert other.peek(limit, "k").remaining == 7


def test_a_closed_limiter_that_is_asked_again_finds_the_store_again(own_server):
    """Its background starts with the next request: without it an outage would never end."""
    limit = Limit(name="rate", quota=1_000_000, window_seconds=HOUR)
    limiter = Limiter(own_server.url, timeout=0.05)
    assert limiter.hit(limit, "k").source == "store"
    limiter.close()
    own_server.freeze()
    assert eventually(lambda: limiter.hit(limit, "k") and limiter.state == "degraded")
    own_server.thaw()

    assert eventually(lambda: limiter.hit(limit, "k").source == "store")
    limiter.close()


@pytest.mark.parametrize(
    ("rule", "allowed", "reason"), [("allow", True, "ok"), ("deny", False, "degraded_denied"), ("local", True, "ok")]
)
def test_each_limit_has_its_own_rule(own_server, rule, allowed, reason):
    """``allow`` admits beyond the quota, ``deny`` nothing, ``local`` this process' share; each says what it is."""
    limiter = Limiter(own_server.url, timeout=0.05)
    limit = Limit(name="rate", quota=2, window_seconds=HOUR, on_store_failure=rule)
    assert limiter.hit(limit, "k").source == "store"
    own_server.freeze()
    for _ in range(3):
        limiter.hit(Limit(name="other", quota=100, window_seconds=HOUR, on_store_failure="allow"), "x")

    first = limiter.hit(limit, "k")
    further = [limiter.hit(limit, "k").allowed for _ in range(4)]

    assert (first.allowed, first.reason, first.source, first.degraded) == (allowed, reason, "fallback", True)
    assert further == {"allow": [True] * 4, "deny": [False] * 4, "local": [False] * 4}[rule]
    own_server.thaw()  # to close a limiter takes seconds while its store is frozen
    limiter.close()


def test_a_cost_above_the_share_may_pass_when_the_store_is_back(own_server):
    """It was denied for ever, with the sentence that the limit cannot admit so much, which it can."""
    with Limiter(own_server.url, timeout=0.05, fleet_size=4) as limiter:
        limit = Limit(name="rate", quota=4, window_seconds=HOUR)
        assert limiter.hit(limit, "k", costs=2).allowed
        limiter._engine.health.breaker.trip("test")

        above_the_share, above_the_quota = (limiter.hit(limit, "k", costs=cost) for cost in (2, 5))

        assert (above_the_share.allowed, above_the_share.reason) == (False, "limited")
        assert above_the_share.retry_after_ms == 1_000
        assert (above_the_quota.reason, above_the_quota.retry_after_ms) == ("cost_exceeds_capacity", None)
        assert eventually(lambda: limiter.hit(limit, "k", costs=2).allowed)


def test_a_store_that_comes_back_empty_is_filled_and_used(own_server):
    """Without documents the last good ones hold; the published ones are taken over when they come."""
    world = World(own_server.url)
    secret = world.everything(fixed(5))
    with Limiter(own_server.url, timeout=0.1) as limiter:
        assert limiter.check(secret).remaining == 4
        own_server.kill()
        own_server.restart(empty=True)
        assert eventually(lambda: limiter.check(secret, costs=0).source == "store")
        assert limiter.check(secret, costs=0).allowed
        again = World(own_server.url)
        again.published.revision = world.revision
        documents = {"global": {"schema": 1, "policy": None}, **world.policy("api", fixed(9)), **world.project()}
        again.publish(documents, {secret: world.token("pol_api")})
        assert eventually(lambda: limiter.check(secret, costs=0).limit.quota == 9)


def test_a_limiter_starts_from_disk_while_the_store_is_down(own_server, tmp_path):
    """Known tokens are decided by the last good documents, and unknown ones are not judged."""
    world = World(own_server.url)
    secret = world.everything(fixed(4))
    with Limiter(own_server.url, state_dir=tmp_path, timeout=0.1) as limiter:
        limiter.check(secret)
        assert eventually(lambda: any(tmp_path.glob("documents-*")))
    own_server.kill()

    with Limiter(own_server.url, state_dir=tmp_path, timeout=0.1) as limiter:
        decision = limiter.check(secret)
        unknown = limiter.check(mint("live"))

    assert (decision.allowed, decision.source) == (True, "fallback")
    assert unknown.reason == "degraded_denied"


def test_a_limiter_used_after_it_was_closed_comes_back_from_an_outage(own_server):
    """It tends anew from the first request on, also where that has a key that was known before."""
    limit = Limit(**LIMIT[0])
    with Limiter(own_server.url, timeout=0.1) as limiter:
        assert limiter.hit(limit, "k").source == "store"
    own_server.freeze()
    assert eventually(lambda: limiter.hit(limit, "k").source == "fallback" and limiter.stats().servers_away == 1)
    own_server.thaw()

    assert eventually(lambda: limiter.hit(limit, "k").source == "store")
    limiter.close()
