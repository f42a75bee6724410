"""Clocks that are an hour wrong: the store's, and an enforcer's. Windows are the store's, and nobody is locked out."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from enforcement import Denied, Limit, Limiter
from enforcement.embedded import ValkeyServer
from enforcement.model.algorithms import Reference
from enforcement.plan.binding import BoundLimit
from enforcement.proof.history import read
from enforcement.store.client import connect, load_library
from tests.enforcement.clocks import WallClock
from tests.enforcement.world import eventually

# At which point of a call a clock is set is chance, so that a proof sets it more than once.
pytestmark = pytest.mark.proof(times=2)

HOUR, MINUTE = 3_600, 60
SECOND = 1_000_000
COUNTING = ["fixed_window", "sliding_window", "sliding_log", "token_bucket"]


@pytest.fixture(scope="module")
def clock(tmp_path_factory):
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def shifted(clock):
    """Give a store that lives by the clock."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        server = ValkeyServer(persistent=False).start()
    with server:
        yield server


@pytest.fixture
def limiter(clock, shifted):
    """Give a limiter on it, by whose own clock nothing has happened."""
    shift_store(clock, shifted, 0)
    client = connect(shifted.url)
    load_library(client)
    client.flushall()
    limiter = Limiter(shifted.url, timeout=1.0)
    yield limiter
    limiter.close()


def ahead(server):
    """Return how far the store's clock is ahead of ours, in seconds."""
    with connect(server.url) as client:
        return client.time()[0] - time.time()


def shift_store(clock, server, seconds):
    """Set the store's clock, and wait until it goes by that: a few commands more may be told the time from before."""
    clock.set(seconds)
    assert eventually(lambda: abs(ahead(server) - seconds) < 5)


def exhaust(limiter, limit, key):
    """Charge until nothing is left."""
    while limiter.hit(limit, key).allowed:
        pass


def decide_by_store(limiter, limits, key):
    """Return the store's own decision; a denial may be remembered for a quarter of a second."""
    while (decision := limiter.hit(limits, key)).source == "denial_cache":
        time.sleep(0.01)
    return decision


@pytest.mark.parametrize("algorithm", COUNTING)
def test_a_store_set_back_an_hour_blocks_nobody_for_longer_than_a_window(clock, shifted, limiter, algorithm):
    """What was charged by the wrong clock is felt for a window at most, and not for an hour; the store says so."""
    limit = Limit(name="rate", algorithm=algorithm, quota=5, window_seconds=MINUTE)
    shift_store(clock, shifted, HOUR)
    exhaust(limiter, limit, "back")

    shift_store(clock, shifted, 0)
    denied = limiter.peek(limit, "back")

    assert not denied.allowed
    assert 0 < denied.retry_after_ms <= MINUTE * 1_000
    assert denied.reset_ms <= 2 * MINUTE * 1_000


def test_a_denial_starts_the_window_that_ends_the_block(clock, shifted, limiter):
    """The block does not begin anew with each request: its end, once told, stands."""
    limit = Limit(name="rate", quota=5, window_seconds=MINUTE)
    shift_store(clock, shifted, HOUR)
    exhaust(limiter, limit, "stands")
    shift_store(clock, shifted, 0)
    assert decide_by_store(limiter, limit, "stands").reason == "limited"
    ends_at = time.time() + limiter.peek(limit, "stands").reset_ms / 1_000

    shift_store(clock, shifted, int(ends_at - time.time()) + 1)
    assert decide_by_store(limiter, limit, "stands").allowed


def test_the_slot_of_a_dead_owner_is_free_after_its_life_on_a_store_set_back(clock, shifted, limiter):
    """The store's clock was an hour ahead when it was given; who asks first after that says when it ends."""
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=MINUTE)
    shift_store(clock, shifted, HOUR)
    with limiter.admit(slots, "dead") as admission:
        limiter._engine.slots.drop(admission.reservation)  # dead owners renew nothing
        shift_store(clock, shifted, 0)
        denied = limiter.peek(slots, "dead")
        assert not denied.allowed
        assert max(denied.retry_after_ms, denied.reset_ms) <= MINUTE * 1_000
        with pytest.raises(Denied):
            limiter.admit(slots, "dead").__enter__()

        shift_store(clock, shifted, MINUTE + 1)
        assert limiter.peek(slots, "dead").allowed


def test_a_store_set_back_is_not_away(clock, shifted, limiter, caplog):
    """Its reply to the change log is due by its own clock, and comes late by ours: decisions do not wait for it."""
    caplog.set_level("INFO", "sluicegate.agent")
    wide = Limit(name="wide", quota=1_000_000, window_seconds=MINUTE)
    limiter.start(0.0)
    sources = {limiter.hit(wide, "k").source}
    assert eventually(lambda: limiter._engine.agent._change_log._answer_by is not None)
    shift_store(clock, shifted, -HOUR)
    assert eventually(lambda: sources.add(limiter.hit(wide, "k").source) or "The log failed" in caplog.text)
    sources |= {limiter.hit(wide, "k").source for _ in range(20)}

    assert sources == {"store"}
    assert limiter.stats().outages == 0


def test_a_living_holder_keeps_its_slot_on_a_store_set_ahead(clock, shifted, limiter):
    """All slots have ended at once. The holder sees the clock jump, and takes its slot before somebody else does."""
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=MINUTE)
    with limiter.admit(slots, "living"):
        shift_store(clock, shifted, HOUR)
        assert eventually(lambda: not limiter.peek(slots, "living").allowed)
        with pytest.raises(Denied):
            limiter.admit(slots, "living").__enter__()
    assert limiter.peek(slots, "living").remaining == 1


def test_a_holder_whose_place_was_taken_does_not_come_back(clock, shifted, limiter):
    """The store never has more slots than the limit, whoever was there first."""
    slots = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=MINUTE)
    with limiter.admit(slots, "taken") as first:
        limiter._engine.slots.drop(first.reservation)  # from here on it is renewed when the test says so
        shift_store(clock, shifted, HOUR)
        with limiter.admit(slots, "taken"):
            limiter._engine.slots._renew(first.reservation, 1.0)
            assert limiter.peek(slots, "taken").remaining == 0
        assert limiter.peek(slots, "taken").remaining == 1
        limiter._engine.slots._renew(first.reservation, 1.0)
        assert limiter.peek(slots, "taken").remaining == 0
    limiter._engine.slots._renew(first.reservation, 1.0)  # a renewal that comes after the release

    assert limiter.peek(slots, "taken").remaining == 1


def test_control_without_it_the_counter_waits_for_its_hour():
    """The arithmetic that held before: an instant before the last charge is the instant of that charge, however far."""
    limit = Limit(name="rate", quota=5, window_seconds=MINUTE)
    spec, reference = BoundLimit(limit, "k", "key").spec(0), Reference()
    now = 1_767_225_600 * SECOND
    reference.decide(now + HOUR * SECOND, [("k", spec, 5)])
    counter = reference.counters["k"]

    # Half a window back is jitter, and stands still; the same counter an hour back counts from now.
    assert reference.decide(now + HOUR * SECOND - 30 * SECOND, [("k", spec, 1)])[4] == MINUTE * SECOND
    assert reference.decide(now, [("k", spec, 1)])[4] == MINUTE * SECOND
    assert counter.ends - now == HOUR * SECOND + MINUTE * SECOND


def test_a_store_set_ahead_an_hour_begins_its_windows_and_nothing_else(clock, shifted, limiter):
    """A later window is a later window: each limit admits one quota of it, and no more."""
    limits = [Limit(name="hour", quota=5, window_seconds=HOUR), Limit(name="ever", quota=8, calendar="lifetime")]
    assert sum(limiter.hit(limits, "ahead").allowed for _ in range(20)) == 5
    shift_store(clock, shifted, HOUR)
    decisions = [decide_by_store(limiter, limits, "ahead") for _ in range(4)]

    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert decisions[-1].denied_by == ("ever",)


@pytest.mark.parametrize("shift", [HOUR, -HOUR, 40 * 24 * HOUR])
def test_calendar_windows_are_the_stores(clock, shifted, limiter, shift):
    """Boundaries come from the enforcer's time zones, and the window that holds from the store's clock."""
    shift_store(clock, shifted, shift)
    limit = Limit(name="hour", quota=5, calendar="hour", time_zone="Asia/Kathmandu")
    decisions = [limiter.hit(limit, f"calendar{shift}") for _ in range(7)]
    now = time.time() + shift
    # Kathmandu is 5 h 45 min ahead: its hours begin at a quarter past ours.
    until_end = HOUR - (now + 45 * MINUTE) % HOUR

    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 2
    assert {decision.source for decision in decisions} <= {"store", "denial_cache"}
    assert abs(decisions[0].reset_ms / 1_000 - until_end) < 2


ENFORCER = """
import json, sys, time
from enforcement import Limit, Limiter

limits = [Limit(name="month", quota=1000, calendar="month"), Limit(name="rate", quota=5, window_seconds=86400)]
with Limiter(sys.argv[1], timeout=1.0) as limiter:
    token = limiter.check(sys.argv[3])
    decisions = [limiter.hit(limits, sys.argv[2]) for _ in range(7)]
    print(json.dumps({
        "allowed": [decision.allowed for decision in decisions],
        "sources": sorted({decision.source for decision in decisions}),
        "reset_at": int(decisions[0].headers("legacy-epoch")["X-RateLimit-Reset"]),
        "token": token.reason,
        "clock": time.time(),
    }))
"""


def enforce(server, clock, key, secret):
    """Decide in a process that lives by the clock, and return what it says."""
    result = subprocess.run(
        [sys.executable, "-c", ENFORCER, server.url, key, secret],
        env=os.environ | clock.environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_an_enforcers_clock_decides_nothing(clock, server, world, shift):
    """Decisions, the instant in a header and the end of a token are those of the store's clock."""
    now_us = time.time_ns() // 1_000
    valid = world.everything({"name": "a", "algorithm": "fixed_window", "quota": 9, "window_seconds": 60})
    expires_at_us = now_us + (HOUR // 2 if shift > 0 else -HOUR // 2) * SECOND
    world.publish(tokens={valid: world.token("pol_api", expires_at_us=expires_at_us)})
    clock.set(shift)
    said = enforce(server, clock, f"enforcer{shift}", valid)
    day = 24 * HOUR

    assert abs(said["clock"] - time.time() - shift) < 5
    assert said["allowed"] == [True] * 5 + [False] * 2
    assert set(said["sources"]) <= {"store", "denial_cache"}
    assert abs(said["reset_at"] - (time.time() // day + 1) * day) <= 1
    assert said["token"] == ("ok" if shift > 0 else "expired")


ALONE = """
import sys, time
from enforcement import Limit, Limiter
from enforcement.engine.store_clock import StoreClock
from tests.enforcement.failover.test_fault_clocks import QUOTA, of_each_algorithm

if sys.argv[2] == "control":
    StoreClock.now_us = lambda clock: time.time_ns() // 1_000

def say(*words):
    print(*words, flush=True)
    sys.stdin.readline()

with Limiter(sys.argv[1], timeout=0.2) as limiter:
    limits = of_each_algorithm()
    for limit in limits:
        assert limiter.hit(limit, "alone").source == "store"
    say("ready")
    admitted = [sum(limiter.hit(limit, "alone").allowed for _ in range(2)) for limit in limits]
    say("away", limiter.stats().servers_away)
    more = [sum(limiter.hit(limit, "alone").allowed for _ in range(QUOTA)) for limit in limits]
    say(*map(sum, zip(admitted, more)))
    while limiter.hit(limits[0], "alone", 0).source != "store" or limiter._engine.fallback.owes():
        time.sleep(0.01)
    say("back")
"""
QUOTA = 6


def of_each_algorithm():
    """Return limits whose windows end at different times."""
    shapes = {
        "fixed": {"window_seconds": HOUR},
        "hour": {"calendar": "hour", "time_zone": "Asia/Kathmandu"},
        "month": {"calendar": "month"},
        "sliding": {"algorithm": "sliding_window", "window_seconds": HOUR},
        "log": {"algorithm": "sliding_log", "window_seconds": 600},
        "bucket": {"algorithm": "token_bucket", "window_seconds": 24 * HOUR},
    }
    return [Limit(name=name, quota=QUOTA, **shape) for name, shape in shapes.items()]


def alone(server, clock, shift, mode=""):
    """
    Set the clock of a process while its store is frozen. Return for each limit what it admitted alone, and what the
    store has afterwards.
    """
    clock.set(0)
    command = [sys.executable, "-c", ALONE, server.url, mode]
    environment, folder = os.environ | clock.environment, Path(__file__).parents[3]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=folder, **pipes) as process:

        def hear():
            return process.stdout.readline().split()

        def go_on():
            process.stdin.write("\n")
            process.stdin.flush()
            return hear()

        assert hear() == ["ready"]
        server.freeze()
        try:
            assert go_on() == ["away", "1"]
            clock.set(shift)
            admitted = [int(word) for word in go_on()]
        finally:
            server.thaw()
        assert go_on() == ["back"]
        with Limiter(server.url, timeout=1.0) as limiter:
            used = [QUOTA - limiter.peek(limit, "alone").remaining for limit in of_each_algorithm()]
        process.communicate("\n")
    return admitted, used


@pytest.mark.usefixtures("documents")
@pytest.mark.parametrize("shift", [0, HOUR, -HOUR])
def test_an_enforcers_clock_that_is_set_during_an_outage_moves_no_window(clock, own_server, shift):
    """What is left is admitted once, and charged to the windows it belongs to, of each kind."""
    admitted, used = alone(own_server, clock, shift)

    assert admitted == [QUOTA - 1] * 6
    assert used == [QUOTA] * 6


@pytest.mark.usefixtures("documents")
def test_control_by_its_wall_clock_it_would_admit_a_window_more(clock, own_server):
    """The clock was set: who believes it admits a whole share again, and charges it to an hour that is not there."""
    admitted, used = alone(own_server, clock, HOUR, "control")

    assert admitted[0] > QUOTA - 1
    assert min(used) < QUOTA


def test_a_ledger_is_timed_by_no_clock_that_jumps(clock, server, world, tmp_path):
    """The load's own clock is set back under it: spans stay spans, for they are measured by another one."""
    command = [sys.executable, "-m", "enforcement.proof", "load", "--url", server.url, "--limit", "9/hour", "--wait"]
    command += ["--out", str(tmp_path), "--instance", "jump", "--calls", "40", "--pause", "0.01", "--timeout", "1"]
    clock.set(0)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | clock.environment
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        while not (tmp_path / "jump.ledger").read_text().count('"id"'):
            time.sleep(0.005)
        clock.set(-HOUR)
    records = read(tmp_path / "jump.ledger").records

    assert min(later.started_at_us - earlier.started_at_us for earlier, later in pairwise(records)) < -HOUR * SECOND / 2
    assert max(record.took_ms for record in records) < 1_000
    assert sum(record.allowed for record in records) == 9
