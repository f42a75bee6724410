"""Leased limits over real processes: never over the quota, nothing lost but what a killed process held."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest

from enforcement import Limit, Limiter
from enforcement.aio import Limiter as AsyncLimiter
from enforcement.engine import agent
from enforcement.model.lease_bounds import unused_max
from enforcement.model.tokens import mint
from enforcement.proof.checker import judge
from enforcement.proof.evidence import Evidence, Terms
from enforcement.proof.model import felt, peak
from tests.enforcement.fleet import fleet
from tests.enforcement.leased import calls
from tests.enforcement.world import eventually
from tests.scale import scale

pytestmark = pytest.mark.usefixtures("documents")

DAY = 86_400
ALGORITHMS = ["fixed_window", "sliding_window", "sliding_log", "token_bucket"]
ADMITTED, LEASED = b'"allowed":true', b'"source":"lease"'
# Three processes already take permits that others gave back. A quota of 10 shows a share that is rounded up, one of
# 1,000 a lease that is counted twice.
PROCESSES, QUOTAS = scale((3, (10, 1_000)), (8, (10, 100, 1_000, 10_000, 100_000)))


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


@pytest.mark.proof
@pytest.mark.parametrize("quota", QUOTAS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_processes_stay_within_the_quota(server, world, algorithm, quota):
    """However permits are taken ahead, given back and taken again, no more than the quota pass."""
    calls = max(50, quota * 8 // 5 // PROCESSES)
    with fleet(server.url, [leased(algorithm, quota)], PROCESSES, "--calls", str(calls), "--seconds", "20") as hammers:
        hammers.go()
        ledger = hammers.ledger()
    admitted = sum(line.allowed for line in ledger)

    assert admitted <= quota
    # Whoever asked to the end was denied by the store only when nothing was left there: the rest lay in others' leases.
    assert admitted >= quota * 0.9 - 8


ROLLING = [
    Limit(name="fixed", algorithm="fixed_window", quota=500, window_seconds=1, consistency="leased"),
    Limit(name="sliding", algorithm="sliding_window", quota=500, window_seconds=1, consistency="leased"),
    Limit(name="log", algorithm="sliding_log", quota=500, window_seconds=1, consistency="leased"),
    Limit(name="bucket", algorithm="token_bucket", quota=500, window_seconds=1, consistency="leased"),
]


@pytest.mark.proof
@pytest.mark.parametrize("limit", ROLLING, ids=lambda limit: limit.name)
def test_windows_roll_and_processes_die_and_none_is_overfull(server, world, limit):
    """Windows end under the load, one process is killed and another one comes: each window has its quota."""
    options = ("--seconds", "110", "--pause", "0.002")
    with (
        fleet(server.url, [limit.to_json()], PROCESSES, *options) as first,
        fleet(server.url, [limit.to_json()], 1, *options) as late,
    ):
        first.go()
        assert eventually(lambda: first.written(ADMITTED) > limit.capacity, 60.0, 0.02)
        first.processes[0].kill()
        late.go()
        enough = scale(2, 20) * limit.capacity
        assert eventually(lambda: first.written(ADMITTED) + late.written(ADMITTED) > enough, 60.0, 0.02)
        assert eventually(lambda: first.written(LEASED), 20.0)
        for process in first.processes + late.processes:
            process.terminate()
        ledgers = first.ledgers() + late.ledgers()
    evidence = Evidence(ledgers, Terms())
    windows = [claim for claim in judge(evidence) if claim.what.startswith(f"{limit.name}: admitted")]

    assert windows
    assert all(claim.held for claim in windows), windows
    assert {record.source for record in evidence.records} >= {"store", "lease"}
    assert sum(record.allowed for record in evidence.records) > enough


# None of their windows ends while a test sets the clock of the leases and not that of the store.
STEADY = [
    Limit(name="fixed", quota=1_000_000, window_seconds=DAY, consistency="leased"),
    Limit(name="sliding", algorithm="sliding_window", quota=1_000_000, window_seconds=DAY, consistency="leased"),
    Limit(name="log", algorithm="sliding_log", quota=1_000_000, window_seconds=60, consistency="leased"),
    Limit(name="bucket", algorithm="token_bucket", quota=20_000, burst=200_000, window_seconds=1, consistency="leased"),
]
STEADY_DECISIONS, RATE = 12_000, 10_000


@pytest.mark.parametrize("limit", STEADY, ids=lambda limit: limit.name)
def test_a_steady_rate_is_decided_without_the_store(server, world, lease_clock, limit):
    """At most three calls of the store for a thousand decisions, at 10,000 decisions a second of one key."""
    with Limiter(server.url, timeout=1.0) as limiter:
        before, decisions = calls(world), []
        for _ in range(STEADY_DECISIONS):
            decisions.append(limiter.hit(limit, "steady").allowed)
            lease_clock.now += 1 / RATE
            lease_clock.settle(limiter)
        asked = calls(world) - before

    assert all(decisions)
    assert asked / len(decisions) <= 0.003


async def test_a_steady_rate_of_tasks_is_decided_without_the_store(server, world, lease_clock):
    """The same for asyncio."""
    async with AsyncLimiter(server.url, timeout=1.0) as limiter:
        before, sources = calls(world), Counter()
        for _ in range(STEADY_DECISIONS):
            sources[(await limiter.hit(STEADY[0], "steady")).source] += 1
            lease_clock.now += 1 / RATE
            lease_clock.settle(limiter)
        asked = calls(world) - before

    assert asked / sources.total() <= 0.003


WITHIN_SECONDS = [
    Limit(name=algorithm, algorithm=algorithm, quota=20_000, window_seconds=1, consistency="leased")
    for algorithm in ALGORITHMS[:2]  # permits of a log or bucket may be held for a hundredth of a second only
]


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="a rate in real time says nothing on a busy machine: make proof")
@pytest.mark.parametrize("limit", WITHIN_SECONDS, ids=lambda limit: limit.name)
def test_several_processes_at_a_steady_rate_hardly_call(server, world, limit):
    """At most two calls for a hundred decisions of four processes while windows end, each at its part of the rate."""
    before = calls(world)
    with fleet(server.url, [limit.to_json()], 4, "--seconds", "10", "--pause", "0.0003", "--fleet", "4") as hammers:
        hammers.go()
        ledger = hammers.ledger()

    assert len(ledger) > 33_000
    assert (calls(world) - before) / len(ledger) <= 0.02


def test_a_limit_with_nothing_left_is_left_alone(server, world):
    """Whoever is denied and asks on and on has neither decisions nor permits asked for in the store."""
    limit = Limit(**leased("fixed_window", 100))
    with Limiter(server.url, timeout=1.0) as limiter:
        while limiter.hit(limit, "dry").allowed:
            pass
        before = calls(world)
        # The last permits may be on their way to the lease.
        asked = sum(not limiter.hit(limit, "dry").allowed for _ in range(20_000))

    assert asked > 19_900
    assert calls(world) - before < 50


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
    """What the dead ones had charged and not handed out is within the bound that was published; all else is there."""
    limit = Limit(**leased("fixed_window", 20_000))
    options = ("--seconds", "30", "--pause", "0.0001", "--fleet", "4")
    with fleet(server.url, [limit.to_json()], 4, *options) as hammers:
        hammers.go()
        assert eventually(lambda: hammers.written(ADMITTED) > 1_000 and hammers.written(LEASED), 20.0)
        for process in hammers.processes:
            process.kill()
        admitted = sum(line.allowed for line in hammers.ledger())
    with Limiter(server.url, timeout=1.0) as limiter:
        left = limiter.peek(limit, "k").remaining

    # A decision that was made and not yet written down when the process died is not known to have been made.
    assert 0 <= limit.quota - left - admitted <= unused_max(limit, 4) + 4
    assert admitted > 1_000


def test_an_idle_process_gets_its_permit_while_a_busy_one_takes_ahead(server, world, lease_clock):
    """One process takes no more than a part of what is left, so another's first request passes at once, to the end."""
    limit, first = Limit(**leased("fixed_window", 1_000_000)), []
    with ExitStack() as stack:
        busy, *idle = [stack.enter_context(Limiter(server.url, timeout=1.0)) for _ in range(6)]
        busy.hit(limit, "k", 1_000_000 - 5_000)
        for limiter in idle:
            for _ in range(500):  # at one instant, so that it wants as much as it may hold, which is 10,000
                assert busy.hit(limit, "k").allowed
                lease_clock.settle(busy)
            first.append(limiter.hit(limit, "k"))

    assert [(decision.allowed, decision.source) for decision in first] == [(True, "store")] * 5


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


def test_a_process_that_ends_gives_back(server, world):
    """Also one that never closed its limiter."""
    limit = Limit(**leased("fixed_window", 100_000))
    script = (
        "import json, sys; from enforcement import Limit, Limiter\n"
        "limit, limiter = Limit(**json.loads(sys.argv[2])), Limiter(sys.argv[1], timeout=1.0)\n"
        "made = 0\n"
        "while limiter.stats().lease_permits_held < 100: made += limiter.hit(limit, 'ends').allowed\n"
        "print(made)"
    )
    command = [sys.executable, "-c", script, server.url, json.dumps(limit.to_json())]
    admitted = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout)

    with Limiter(server.url, timeout=1.0) as limiter:
        assert limiter.peek(limit, "ends").remaining == 100_000 - admitted


def test_a_reset_leaves_nothing_on_lease(server, world):
    """Permits that were charged before it would be admitted beside the whole quota, or given back once more."""
    limit = Limit(**leased("fixed_window", 2_000))
    with Limiter(server.url, timeout=1.0) as limiter:
        while limiter.stats().lease_permits_held < 50:
            assert limiter.hit(limit, "reset").allowed

        limiter.reset(limit, "reset")
        admitted = 0

        def used_up() -> bool:
            """A denial alone does not say so: the rest may be on its way to a lease. It is handed out or comes back."""
            nonlocal admitted
            while limiter.hit(limit, "reset").allowed:
                admitted += 1
            return admitted >= 2_000

        assert eventually(used_up)
        assert eventually(lambda: limiter.stats().lease_permits_held == 0)
        assert not any(limiter.hit(limit, "reset").allowed for _ in range(100))

    assert admitted == 2_000


def test_what_could_not_be_given_back_is_when_the_store_is_there_again(own_server):
    """The store was not there to take it: it is owed, and nothing is lost."""
    limit = Limit(**leased("fixed_window", 100_000))
    with Limiter(own_server.url, timeout=5.0) as limiter:
        admitted = 0
        while limiter.stats().lease_permits_held < 100:
            admitted += limiter.hit(limit, "owed").allowed
        own_server.stop()
        assert eventually(lambda: limiter.stats().journal_entries == 1, 60)
        assert limiter.stats().lease_permits_held == 0
        own_server.start()

        assert eventually(lambda: limiter.stats().journal_entries == 0, 60)
        assert eventually(lambda: limiter.peek(limit, "owed").remaining == 100_000 - admitted, 60)


def test_a_change_ends_a_lease(server, world):
    """A lowered quota and a revoked token are obeyed as soon as they are known; what was held is given back."""
    secret, token = mint("live"), world.token("pol_changing")
    documents = {**world.project(), "global": {"schema": 1, "policy": None}}
    with Limiter(server.url, timeout=1.0) as limiter:
        for quota in (10_000, 100):
            policy = world.policy("changing", leased("fixed_window", quota))
            world.publish({**documents, **policy}, {secret: token})
            assert eventually(lambda: limiter.revision == world.revision)
            if quota == 10_000:
                while limiter.stats().lease_permits_held < 100:
                    assert limiter.check(secret).allowed
        lowered = limiter.check(secret)
        assert eventually(lambda: limiter.stats().lease_permits_held == 0, seconds=1.0)

        world.publish(documents, {secret: {**token, "revoked": True}})
        assert eventually(lambda: limiter.revision == world.revision)
        revoked = limiter.check(secret)

    assert (lowered.allowed, lowered.source, lowered.limit.quota) == (False, "store", 100)
    assert revoked.reason == "revoked"


def test_tokens_that_share_a_counter_share_what_may_lie_unused(server, world):
    """A project's limit falls on each of its tokens, and all their leases together keep to its bound."""
    secrets = [mint("live") for _ in range(12)]
    policy = world.policy("shared", leased("fixed_window", 10_000))
    documents = {**policy, **world.project("pol_shared"), "global": {"schema": 1, "policy": None}}
    with Limiter(server.url, timeout=1.0) as limiter:
        world.publish(documents, {secret: world.token() for secret in secrets})
        assert eventually(lambda: limiter.revision == world.revision)
        decisions, held = [], []
        for _ in range(200):
            decisions += [limiter.check(secret) for secret in secrets for _ in range(4)]
            held.append(limiter.stats().lease_permits_held)

    assert Counter(decision.source for decision in decisions)["lease"] > 1_000
    assert 100 < max(held) <= decisions[0].limit.unused_max == 1_000


def test_the_bound_is_told_before_there_is_a_lease_and_beside_a_strict_limit(server, world):
    """Others may hold permits of a limit that this process, or this request, takes none of."""
    shared = Limit(**leased("fixed_window", 10_000))
    strict = Limit(name="strict", quota=10_000, window_seconds=DAY)
    with Limiter(server.url, timeout=1.0) as limiter:
        bounds = [state.unused_max for state in limiter.hit([shared, strict], "told").limits]

    assert bounds == [1_000, 0]


def test_no_more_than_the_bound_lies_unused(server, world, monkeypatch):
    """Four instances at full speed hold no more than each decision says that they may."""
    monkeypatch.setattr(agent, "HEARTBEAT_SECONDS", 0.1)  # they hear of each other soon
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


# Long enough that a whole window lies behind another one, wherever both are laid.
MOVING_SECONDS = scale(2.0, 20.0)
# About five denials a second are the store's own, the others are remembered.
DENIALS = scale(4, 50)
# So small that any machine asks for more.
MOVING = [
    Limit(name="log", algorithm="sliding_log", quota=200, window_seconds=1, consistency="leased"),
    Limit(name="bucket", algorithm="token_bucket", quota=100, burst=500, window_seconds=1, consistency="leased"),
]


def certain_peak(limit, begun, ended):
    """
    Return the most permits that surely were in use at once, as :func:`peak` does, of requests that took some time.

    When in its time a request of a lease passed is not known. A process that has to wait for its core between the two
    readings of the clock would look as if more requests had passed within a window.
    """
    first, most = 0, 0
    if limit.algorithm == "sliding_log":
        for last, end_us in enumerate(ended):
            while begun[first][0] <= end_us - 1_000_000 * limit.window_seconds:
                first += 1
            most = max(most, last - first + 1)
        return most
    unit, least = 1_000_000 * limit.window_seconds, None
    for at, ((start_us, _), end_us) in enumerate(zip(begun, ended, strict=True)):
        before = at * unit - limit.quota * start_us
        least = before if least is None else min(least, before)
        most = max(most, -(-((at + 1) * unit - limit.quota * end_us - least) // unit))
    return most


def test_the_certain_peak_of_requests_without_length_is_their_peak():
    """The control: it sees one permit too many, at the place where the model sees it."""
    for limit in MOVING:
        strict, allowed = replace(limit, consistency="strict"), limit.burst or limit.quota
        instants = [1_700_000_000_000_000] * (allowed + 1)
        charges = [(at_us, 1) for at_us in instants]

        assert certain_peak(limit, charges, instants) == peak(strict, charges) == allowed + 1
        assert certain_peak(limit, charges[1:], instants[1:]) == peak(strict, charges[1:]) == allowed


@pytest.mark.proof
@pytest.mark.parametrize("limit", MOVING, ids=lambda limit: limit.name)
def test_no_window_ever_holds_more_wherever_it_is_laid(server, world, limit):
    """A permit that is handed out late is felt late: by the instants of the requests, each second has its quota."""
    passed, ended, sources, denied = [], [], Counter(), {}
    with Limiter(server.url, timeout=1.0) as limiter:
        begun = time.monotonic()
        # Only denials tell whether permits get lost. A machine that is slow for a while is given more time for them.
        while (gone := time.monotonic() - begun) < MOVING_SECONDS or (len(denied) < DENIALS and gone < 30):
            now_us = time.time_ns() // 1_000
            decision = limiter.hit(limit, "moving")
            at_us = decision.decided_at_us if decision.source == "store" else now_us
            if decision.allowed:
                sources[decision.source] += 1
                passed.append((at_us, 1))
                ended.append(at_us if decision.source == "store" else time.time_ns() // 1_000)
            elif decision.source == "store":
                denied[len(passed)] = at_us
            else:
                time.sleep(0.000_5)

    assert certain_peak(limit, sorted(passed), sorted(ended)) <= (limit.burst or limit.quota)
    assert sources["lease"] > 0.12 * len(passed)
    assert len(denied) >= DENIALS
    # Whom the store denies finds nine tenths in use, and at most the rest on lease, however slow the requests came.
    for count in sorted(denied)[:: len(denied) // DENIALS]:
        assert felt(limit, sorted(passed[:count]), denied[count]) >= 0.9 * limit.capacity - 2
