"""Leased limits over real processes: never over the quota, nothing lost but what a killed process held."""

import json
import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from enforcement import Limit, Limiter
from enforcement.leases import unused_max
from enforcement.ledger.sums import peak
from enforcement.tokens import mint
from tests.enforcement.fleet import fleet
from tests.enforcement.world import eventually

DAY = 86_400
ALGORITHMS = ["fixed_window", "sliding_window", "sliding_log", "token_bucket"]


def leased(algorithm, quota):
    """Return a leased limit that gives nothing back while a test lasts."""
    if algorithm == "token_bucket":
        return {
            "name": "rate",
            "algorithm": algorithm,
            "quota": 1,
            "burst": quota,
            "window_seconds": DAY,
            "consistency": "leased",
        }
    return {"name": "rate", "algorithm": algorithm, "quota": quota, "window_seconds": DAY, "consistency": "leased"}


@pytest.mark.parametrize("quota", [10, 1_000, 100_000])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_eight_processes_stay_within_the_quota(server, world, algorithm, quota):
    """However permits are taken ahead, given back and taken again, no more than the quota pass."""
    calls = max(50, quota // 5)
    with fleet(server.url, [leased(algorithm, quota)], 8, "--calls", str(calls), "--seconds", "20") as hammers:
        hammers.go()
        ledger = hammers.ledger()
    admitted = sum(line.allowed for line in ledger)

    assert admitted <= quota
    # Whoever asked to the end was denied by the store only when nothing was left there: the rest lay in others' leases.
    assert admitted >= quota * 0.9 - 8


def test_a_steady_rate_is_decided_without_the_store(server, world):
    """At most two calls of the store for a hundred decisions."""
    with fleet(server.url, [leased("fixed_window", 10_000_000)], 1, "--calls", "20000") as hammers:
        hammers.go()
        ledger = hammers.ledger()

    assert sum(line.source == "store" for line in ledger) / len(ledger) <= 0.02
    assert ledger[-1].source == "lease"


def test_what_is_not_used_comes_back(server, world):
    """A second after the last request the store has only what was admitted."""
    limit = Limit(**leased("fixed_window", 100_000))
    limiter = Limiter(server.url, timeout=1.0)
    admitted = sum(limiter.hit(limit, "idle").allowed for _ in range(3_000))
    assert limiter._engine.leases.outstanding() > 0

    assert eventually(lambda: limiter.peek(limit, "idle").remaining == 100_000 - admitted, seconds=3.0)
    assert limiter._engine.leases.outstanding() == 0
    limiter.close()


def test_a_killed_process_loses_what_it_held_and_no_more(server, world):
    """The limit never admits what the dead one held, and everything else."""
    quota = 50_000
    with fleet(server.url, [leased("fixed_window", quota)], 2, "--seconds", "30", "--pause", "0.0001") as hammers:
        hammers.go()
        time.sleep(1.0)
        for process in hammers.processes:
            process.kill()
    limiter = Limiter(server.url, timeout=1.0)
    left = limiter.peek(Limit(**leased("fixed_window", quota)), "k").remaining
    limiter.close()

    assert 0 < left < quota


def test_an_idle_process_gets_its_permit_while_a_busy_one_runs(server, world):
    """One process takes no more than a part of what is left, so another's first request is answered at once."""
    limit = leased("fixed_window", 1_000_000)
    with fleet(server.url, [limit], 1, "--seconds", "4") as busy:
        busy.go()
        limiter = Limiter(server.url, timeout=1.0)
        began = time.monotonic()
        decision = limiter.hit(Limit(**limit), "k")
        took = time.monotonic() - began
        limiter.close()

    assert decision.allowed
    assert took < 0.5


def test_a_strict_limit_beside_a_leased_one_is_asked(server, world):
    """A request that falls under both is decided by the store, all or nothing."""
    limiter = Limiter(server.url, timeout=1.0)
    both = [Limit(**leased("fixed_window", 10_000)), Limit(name="strict", quota=10_000, window_seconds=DAY)]

    assert {limiter.hit(both, "both").source for _ in range(200)} == {"store"}
    limiter.close()


def test_every_leased_decision_is_reported(server, world):
    """What is handed out is counted in passing; the report has each request and each permit all the same."""
    secret = mint("live")
    policy, token = world.policy("leased", leased("fixed_window", 10_000_000)), world.token("pol_leased")
    limiter = Limiter(server.url, timeout=1.0)
    world.publish({**policy, **world.project(), "global": {"schema": 1, "policy": None}}, {secret: token})

    singles = [limiter.check(secret).source for _ in range(3_000)]
    triples = [limiter.check(secret, costs=3).source for _ in range(500)]
    limiter.close()

    assert singles.count("lease") > 1_000
    assert triples.count("lease") > 100
    batches = [json.loads(fields["rows"]) for _, fields in world.client.xrange(world.keys.usage)]
    rows = [row[4:] for batch in batches for row in batch]
    allowed, cost = (sum(row[at] for row in rows if row[0] == "rate") for at in (2, 5))
    assert (allowed, cost) == (3_500, 4_500)


def test_a_forked_child_does_not_hand_out_what_its_parent_holds(server, world):
    """Both would admit the same permits otherwise."""
    limit = Limit(**leased("fixed_window", 100_000))
    limiter = Limiter(server.url, timeout=1.0)
    assert eventually(lambda: limiter.hit(limit, "fork").source == "lease")

    child = os.fork()
    if child == 0:
        os._exit(0 if limiter.hit(limit, "fork").source == "store" else 1)
    status = os.waitpid(child, 0)[1]
    limiter.close()

    assert status == 0


def test_no_more_than_the_bound_lies_unused(server, world):
    """Four instances at full speed hold no more than each decision says that they may."""
    limit = Limit(**leased("fixed_window", 10_000))
    with ExitStack() as stack:
        fleet = [stack.enter_context(Limiter(server.url, timeout=1.0)) for _ in range(4)]
        assert eventually(lambda: all(limiter._engine.agent.fleet_size == 4 for limiter in fleet), seconds=10.0)
        decisions, held = [], []
        for _ in range(200):
            decisions += [limiter.hit(limit, "bounded") for limiter in fleet for _ in range(10)]
            held.append(sum(limiter._engine.leases.outstanding() for limiter in fleet))

    assert {decision.source for decision in decisions} == {"store", "lease"}
    assert 100 < max(held) <= decisions[-1].limit.unused_max == 1_000


@pytest.mark.parametrize(
    ("quota", "fleet", "unused"), [(1_000, 4, 100), (1_000, 1, 100), (30, 8, 8), (0, 2, 0), (10**9, 3, 30_000)]
)
def test_the_bound_of_a_limit(quota, fleet, unused):
    """A tenth, one a process at least, and what one process may ever hold at most."""
    limit = Limit(name="leased", quota=quota, window_seconds=60, consistency="leased")

    assert unused_max(limit, fleet) == unused
    assert unused_max(replace(limit, consistency="strict"), fleet) == 0


MOVING = [
    Limit(name="log", algorithm="sliding_log", quota=1_000, window_seconds=1, consistency="leased"),
    Limit(name="bucket", algorithm="token_bucket", quota=2_000, burst=500, window_seconds=1, consistency="leased"),
]


@pytest.mark.parametrize("limit", MOVING, ids=lambda limit: limit.name)
def test_no_window_ever_holds_more_wherever_it_is_laid(server, world, limit):
    """A permit that is handed out late is felt late: by the instants of the requests, each second has its quota."""
    passed, sources = [], Counter()
    with Limiter(server.url, timeout=1.0) as limiter:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            now_us = time.time_ns() // 1_000
            decision = limiter.hit(limit, "moving")
            sources[decision.source] += decision.allowed
            if decision.allowed:
                passed.append((decision.decided_at_us if decision.source == "store" else now_us, 1))

    assert peak(replace(limit, consistency="strict"), sorted(passed)) <= (limit.burst or limit.quota)
    assert sources["lease"] > 300
    assert len(passed) > 0.9 * 2.5 * limit.quota
