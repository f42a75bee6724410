"""Leases for a part of a plan: some limits by permits of the process, the others by the store, all or nothing."""

import asyncio
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from enforcement import Limit, Limiter, aio
from enforcement.model.tokens import mint
from enforcement.proof.checker import judge
from enforcement.proof.evidence import Evidence, Terms
from tests.enforcement.fleet import fleet
from tests.enforcement.leased import calls
from tests.enforcement.world import eventually, fixed, used_of
from tests.scale import scale

pytestmark = pytest.mark.usefixtures("documents")

DAY = 86_400
SHARED = Limit(name="shared", quota=1_000_000, window_seconds=DAY, consistency="leased")
OWN = Limit(name="own", quota=1_000_000, window_seconds=DAY)
ADMITTED = b'"allowed":true'


def leased(quota, **more):
    return Limit(**{"name": "shared", "quota": quota, "window_seconds": DAY, "consistency": "leased", **more})


def strict(quota, **more):
    return Limit(**{"name": "own", "quota": quota, "window_seconds": DAY, **more})


def pairs(own, shared, users=3):
    """Return limits for several users: each has a counter of its own, and all have another one together."""
    return [[(own, f"user:{i}"), (shared, "all")] for i in range(users)]


def used(limiter, limit, key):
    return used_of(limiter.peek(limit, key))[limit.name]


@pytest.mark.parametrize("rate", [1_000, 60])
def test_a_strict_limit_beside_it_does_not_turn_off_a_lease(server, world, lease_clock, rate):
    """The store decides the strict limit of each user, and is asked for the shared one at most twice in a hundred."""
    users, sources = pairs(OWN, SHARED), Counter()
    with Limiter(server.url, timeout=1.0) as limiter:
        for step in range(1_250):
            if step == 250:
                before = calls(world)
            sources[limiter.hit(users[step % 3]).source] += 1
            lease_clock.now += 1 / rate
            lease_clock.settle(limiter)
        asked = calls(world) - before
        held = limiter.stats().lease_permits_held
        counted = used(limiter, SHARED, "all") - held

    assert sources == {"store": 1_250}
    assert asked - 1_000 <= 20
    assert counted == 1_250


@pytest.mark.parametrize("turned", [False, True])
def test_a_denial_by_another_part_puts_the_permit_back(server, world, turned):
    """Requests that the strict limit denies leave nothing charged on lease, whichever of the two is shared."""
    shared, own = ("user:1", "all") if turned else ("all", "user:1")
    limits = [(strict(100), own), (leased(10_000), shared)]
    with Limiter(server.url, timeout=1.0) as limiter:
        while limiter.stats().lease_permits_held < 10 and limiter.hit(limits).allowed:
            pass
        assert limiter.stats().lease_permits_held
        denied = [limiter.hit(limits, costs=101 + i % 2) for i in range(200)]  # another cost is no remembered denial
        while limiter.hit(limits).allowed:
            pass

        assert {decision.denied_by for decision in denied} == {("own",)}
        assert denied[0].limits[1].remaining > 9_000
        assert eventually(lambda: used(limiter, leased(10_000), shared) == 100, 3.0)


def test_no_permits_are_lost_or_gained_when_a_lease_has_others_meanwhile(server, world, lease_clock):
    """A permit whose lease was emptied during the call is returned to the store, and not handed out again."""
    limits = [(strict(50), "user:1"), (leased(10_000), "all")]
    with Limiter(server.url, timeout=1.0) as limiter:
        for _ in range(45):
            limiter.hit(limits)
            lease_clock.settle(limiter)
        call = limiter._pipe.call
        limiter._pipe.call = lambda *command: (limiter._engine.leases._sweep(math.inf), call(*command))[1]
        assert not limiter.hit(limits, costs=6).allowed
        limiter._pipe.call = call
        lease_clock.settle(limiter)

        assert used(limiter, leased(10_000), "all") - limiter.stats().lease_permits_held == 45


def test_permits_that_many_requests_put_back_leave_no_more_unused_than_the_bound(server, world, lease_clock):
    """The lease is filled again while forty are on their way with its permits, and then the strict limit denies all."""
    shared = leased(1_000)
    passing, denied = [(OWN, "user:1"), (shared, "all")], [(strict(4), "user:2"), (shared, "all")]
    decisions = []
    with Limiter(server.url, timeout=5.0) as limiter:

        def ask(limits, **options):
            lease_clock.now += 0.001
            decisions.append(limiter.hit(limits, **options))
            lease_clock.settle(limiter)

        def late(*command):
            lease_clock.settle(limiter)
            if len(on_their_way) < 40:
                on_their_way.append(command)
                ask(denied, costs=5)
            return call(*command)

        for _ in range(30):
            ask(passing)
        call, on_their_way = limiter._pipe.call, []
        limiter._pipe.call = late
        ask(denied, costs=5)
        limiter._pipe.call = call
        held = limiter.stats().lease_permits_held

        assert [decision.allowed for decision in decisions] == [True] * 30 + [False] * 41
        assert held <= decisions[0].limits[1].unused_max == 100
        assert used(limiter, shared, "all") == 30 + held


def test_permits_that_are_put_back_during_a_fill_leave_no_more_unused_than_the_bound(server, world, lease_clock):
    """The denied requests took 80 permits; while the store grants as many again, they do not all come back."""
    shared = leased(1_000)
    passing, denied = [(OWN, "user:1"), (shared, "all")], [(strict(4), "user:2"), (shared, "all")]
    with Limiter(server.url, timeout=5.0) as limiter:
        keeper = limiter._engine.leases
        for _ in range(400):
            lease_clock.now += 0.001
            limiter.hit(passing)
            lease_clock.settle(limiter)
        call, fill = limiter._pipe.call, keeper._pipe.call

        def filling(command):
            reply = fill(command)
            if len(taken) < 12:
                return reply
            granted.set()
            assert put_back.wait(10)
            return reply

        def late(*command):
            if len(taken) < 12:
                taken.append(command)
                limiter.hit(denied, costs=5)
            else:
                assert granted.wait(10)
            return call(*command)

        taken, granted, put_back = [], threading.Event(), threading.Event()
        keeper._pipe.call, limiter._pipe.call = filling, late
        limiter.hit(denied, costs=5)
        put_back.set()
        keeper._pipe.call, limiter._pipe.call = fill, call
        lease_clock.settle(limiter)
        held, counted = keeper.outstanding(), used(limiter, shared, "all")

    assert granted.is_set()
    assert held <= 100
    assert counted == 400 + held


@pytest.mark.parametrize(("left", "allowed"), [(5, True), (0, False)])
@pytest.mark.parametrize(
    "window",
    [
        {},
        {"window_seconds": None, "calendar": "month"},
        {"window_seconds": None, "calendar": "month", "rollover": 10},
        {"window_seconds": None, "calendar": "lifetime"},
        {"algorithm": "sliding_window"},
        {"algorithm": "token_bucket", "window_seconds": 360_000},
    ],
    ids=lambda window: "-".join(map(str, window.values())) or "fixed",
)
def test_a_permit_that_expired_during_the_call_counts_for_nothing(server, world, lease_clock, left, allowed, window):
    """The process stood still until its permit had expired: the store decides that part too, or undoes the other."""
    shared, own = leased(1_000), replace(strict(1_000), **window)
    limits = [(own, "user:1"), (shared, "all")]
    with Limiter(server.url, timeout=5.0) as limiter, Limiter(server.url, timeout=5.0) as other:
        for _ in range(30):
            assert limiter.hit(limits).allowed
            lease_clock.settle(limiter)
        held = limiter.stats().lease_permits_held
        assert held
        # Strict, because it would lease what is left otherwise.
        assert other.hit(replace(shared, consistency="strict"), "all", 1_000 - 30 - held - left).allowed
        call, keeper = limiter._pipe.call, limiter._engine.leases
        keeper._held.clear()  # so that nobody returns the permits before the store is asked
        keeper.ask = lambda lease: None

        def late(*arguments):
            reply = call(*arguments)
            lease_clock.now += 60
            return reply

        limiter._pipe.call = late

        assert limiter.hit(limits).allowed is allowed
        assert used(limiter, own, "user:1") == 30 + allowed
        assert used(limiter, shared, "all") == 1_000 - left + allowed


async def test_tasks_do_the_same_and_a_cancelled_one_is_charged_to_all_or_none(server, world):
    """A task that is cancelled during the call waits for the reply, by which the permit stays or returns."""
    limits, sources = [(strict(60), "user:1"), (leased(100_000), "all")], Counter()
    async with aio.Limiter(server.url, timeout=1.0) as limiter:
        for _ in range(55):
            sources[(await limiter.hit(limits)).source] += 1
        assert await asyncio.to_thread(eventually, lambda: limiter.stats().lease_permits_held > 0)
        tasks = [asyncio.create_task(limiter.hit(limits)) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    assert all(task.cancelled() for task in tasks)
    with Limiter(server.url, timeout=1.0) as limiter:
        assert [state.quota - state.remaining for state in limiter.peek(limits).limits] == [60, 60]


def test_tokens_share_one_lease_beside_their_strict_limits(server, world):
    """The limit of a project has one lease for all its tokens, which keeps to its bound."""
    secrets = [mint("live") for _ in range(12)]
    documents = {**world.policy("own", fixed(1_000, name="own")), **world.project("pol_shared")}
    shared = fixed(10_000, name="shared", consistency="leased")
    with Limiter(server.url, timeout=1.0) as limiter:
        documents |= {**world.policy("shared", shared), "global": {"schema": 1, "policy": None}}
        world.publish(documents, {secret: world.token("pol_own") for secret in secrets})
        assert eventually(lambda: limiter.revision == world.revision)
        decisions, held = [], []
        for _ in range(40):
            decisions += [limiter.check(secret) for secret in secrets]
            held.append(limiter.stats().lease_permits_held)
        leases = len(limiter._engine.leases._held)

        assert leases == 1
        assert all(decision.allowed for decision in decisions)
        assert 0 < max(held) <= decisions[0].limits[0].unused_max == 1_000
        assert eventually(lambda: used_of(limiter.check(secrets[0], costs=0)) == {"shared": 480, "own": 40}, 5.0)


def test_every_decision_by_parts_is_reported_and_counted_once(server, world):
    """Usage has each request of each limit; a permit of a part is no decision by a lease."""
    shared = fixed(100_000, name="shared", consistency="leased")
    secret = world.everything(shared, fixed(200, name="own"))
    with Limiter(server.url, timeout=1.0) as limiter:
        allowed = sum(limiter.check(secret).allowed for _ in range(300))
        stats = limiter.stats()

    assert allowed == 200
    assert {count.source for count in stats.decisions} == {"store", "denial_cache"}
    assert sum(count.count for count in stats.decisions) == 300
    assert stats.lease_permits_used > 0
    rows = [row[4:] for _, fields in world.client.xrange(world.keys.usage) for row in json.loads(fields["rows"])]
    assert {name: sum(row[2] for row in rows if row[0] == name) for name in ("shared", "own")} == {
        "shared": 200,
        "own": 200,
    }


def test_other_units_slots_shadows_and_partitions_stay_what_they_are(server, world):
    """Beside a lease, tokens are counted by the store, a shadow denies nothing, and each address has its counter."""
    secret = world.everything(
        fixed(100_000, name="shared", consistency="leased"),
        fixed(100_000, name="ip", consistency="leased", partition_by=["ip"]),
        fixed(1_000, name="tokens", unit="tokens"),
        fixed(10, name="dry", mode="shadow"),
    )
    addresses = [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}]
    with Limiter(server.url, timeout=1.0) as limiter:
        decisions = [limiter.check(secret, {"tokens": 5}, addresses[i % 2]) for i in range(240)]
        last = limiter.check(secret, {"tokens": 0, "requests": 3}, addresses[0])
        used_permits = limiter.stats().lease_permits_used

        assert [decision.allowed for decision in decisions] == [True] * 200 + [False] * 40
        assert decisions[-1].denied_by == ("tokens",)
        assert last.allowed
        assert used_permits > 100
        counted = {"shared": 203, "ip": 103, "tokens": 1_000, "dry": 10}
        look = {"tokens": 0, "requests": 0}
        assert eventually(lambda: used_of(limiter.check(secret, look, addresses[0])) == counted, 5.0)


def test_without_the_store_permits_are_used_and_the_rest_is_decided_here(own_server):
    """The permits were charged before the outage; what the strict limit admits meanwhile is charged after it."""
    limits = [(strict(10_000), "user:1"), (leased(1_000_000), "all")]
    with Limiter(own_server.url, timeout=1.0) as limiter:
        admitted = 0
        while limiter.stats().lease_permits_held < 20:
            admitted += limiter.hit(limits).allowed
        own_server.freeze()
        own_server.kill()
        alone = [limiter.hit(limits) for _ in range(5)]
        owed = {charge.key for batch in limiter._engine.fallback.batches() for charge in batch.charges}

        assert {decision.source for decision in alone} == {"fallback"}
        assert all(alone)
        assert next(iter(limiter._in_code.values())).keys[0] in owed


def test_a_child_process_has_no_permits_of_its_parent(server, world):
    """Both would admit by the same permits otherwise."""
    limits = [(OWN, "user:1"), (SHARED, "all")]
    with Limiter(server.url, timeout=1.0) as limiter:
        while limiter.stats().lease_permits_held < 20:
            limiter.hit(limits)
        child = os.fork()
        if child == 0:
            limiter.hit(limits)
            os._exit(0 if limiter.stats().lease_permits_held == limiter.stats().lease_permits_used == 0 else 1)
        status = os.waitpid(child, 0)[1]

    assert status == 0


PROCESSES, QUOTAS = scale((2, [200]), (8, [10, 100, 1_000, 10_000]))


@pytest.mark.proof
@pytest.mark.parametrize("quota", QUOTAS)
@pytest.mark.parametrize("algorithm", scale(["fixed_window"], ["fixed_window", "sliding_window", "sliding_log"]))
def test_processes_stay_within_the_quota_beside_a_strict_limit(server, world, algorithm, quota):
    """However permits are taken and put back, no more than the quota pass, and no fewer than nine tenths."""
    limits = [leased(quota, algorithm=algorithm), strict(2 * quota)]
    count = max(50, quota * 8 // 5 // PROCESSES)
    documents = [limit.to_json() for limit in limits]
    with fleet(server.url, documents, PROCESSES, "--calls", str(count), "--seconds", "20") as hammers:
        hammers.go()
        admitted = sum(line.allowed for line in hammers.ledger())

    assert quota * 0.9 - 8 <= admitted <= quota
    with Limiter(server.url, timeout=1.0) as limiter:
        assert used(limiter, limits[1], "k") == admitted


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="processes that stand still for seconds: make proof")
@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "sliding_log"])
def test_stopped_and_killed_processes_leave_no_window_overfull(server, world, algorithm):
    """One process is stopped with permits in its hands until windows have ended, and another is killed."""
    limits = [leased(300, algorithm=algorithm, window_seconds=1), strict(1_000_000)]
    documents = [limit.to_json() for limit in limits]
    with fleet(server.url, documents, PROCESSES, "--seconds", "110", "--pause", "0.002") as hammers:
        hammers.go()
        for turn in range(1, 12):
            assert eventually(lambda turn=turn: hammers.written(ADMITTED) > turn * 400, 60.0, 0.02)
            os.kill(hammers.processes[0].pid, signal.SIGSTOP)
            time.sleep(1.2)  # a window of the store ends meanwhile
            os.kill(hammers.processes[0].pid, signal.SIGCONT)
        hammers.processes[-1].kill()
        enough = hammers.written(ADMITTED) + 600
        assert eventually(lambda: hammers.written(ADMITTED) > enough, 60.0, 0.02)
        for process in hammers.processes:
            process.terminate()
        evidence = Evidence(hammers.ledgers(), Terms())
    windows = [claim for claim in judge(evidence) if claim.what.startswith("shared: admitted")]

    assert windows
    assert all(claim.held for claim in windows), windows
