"""A cluster that loses nodes: only what a dead primary held degrades, and a replica that takes over is used at once."""

import time
from collections import Counter
from dataclasses import replace

import pytest
from redis.exceptions import RedisError

from enforcement import Limit, Limiter
from enforcement.model.keys import Keys
from enforcement.store.breaker import FAILURES_TO_OPEN
from enforcement.store.cluster.slot_map import SlotMap
from tests.enforcement.clustered import PROJECTS, keys_of_thirds, spread, used
from tests.enforcement.crowd import crowd
from tests.enforcement.faults import FaultyPath
from tests.enforcement.topologies import Cluster, execute
from tests.enforcement.world import PROJECT, World, eventually, fixed
from tests.scale import scale

# At which point of a call a node is lost is chance, so that a proof loses it more than once.
pytestmark = pytest.mark.proof(times=5)

LIMIT = Limit(name="rate", quota=1_000_000, window_seconds=86_400)


@pytest.fixture
def lone(cluster):
    """Give three primaries without replicas; a test may kill them, and start them again."""
    return cluster


@pytest.fixture
def doubled():
    """Give three primaries with a replica each."""
    with Cluster() as cluster:
        yield cluster


def test_one_dead_primary_of_three_degrades_its_own_projects_only(lone):
    """
    Of three projects one has its counters on the dead node: its requests are decided by each process alone, the others'
    by the store, changes are obeyed, and what was admitted meanwhile is charged when the node is back.
    """
    world = World(lone.url)
    keys = keys_of_thirds(lone)
    dead = next(i for i in range(3) if lone.primaries[i] not in (lone.owner("{doc}"), lone.owner("{global}")))
    limiter = Limiter(lone.url, timeout=0.1)
    limiter.start(0.0)
    world.followers.append(limiter)
    secret = world.everything(fixed(5))
    for key in keys:
        limiter.hit(LIMIT, key)
    lone.primaries[dead].kill()

    sources = {key: [limiter.hit(LIMIT, key).source for _ in range(20)] for key in keys}
    world.publish(world.policy("api", fixed(7)))

    assert sources == {key: ["fallback" if i == dead else "store"] * 20 for i, key in enumerate(keys)}
    assert limiter.check(secret, costs=0).limit.quota == 7
    assert eventually(lambda: limiter.state == "degraded")
    lone.primaries[dead].start()
    assert eventually(lambda: limiter.hit(LIMIT, keys[dead], 0).source == "store", 10)
    # Empty but for what was admitted while it was away.
    assert eventually(lambda: limiter.peek(LIMIT, keys[dead]).remaining == LIMIT.quota - 20)
    assert eventually(lambda: limiter.state == "ok")
    limiter.close()
    world.client.close()


def test_control_with_one_breaker_for_all_every_project_degrades(lone, monkeypatch):
    """The node is dead for real: a process that takes one failure for the whole store decides everything alone."""
    world = World(lone.url)
    keys = keys_of_thirds(lone)
    limiter = Limiter(lone.url, timeout=0.1)
    for key in keys:
        limiter.hit(LIMIT, key)
    monkeypatch.setattr(SlotMap, "is_away", lambda slot_map, key, but=(): bool(slot_map.away()))
    lone.primaries[0].kill()
    for _ in range(5):
        limiter.hit(LIMIT, keys[0])

    assert {limiter.hit(LIMIT, key).source for key in keys} == {"fallback"}
    limiter.close()
    world.client.close()


def test_a_frozen_node_costs_its_own_callers_a_few_budgets(lone):
    """Three processes ask for a key on each node: those of the frozen one wait a few times, and nobody else does."""
    World(lone.url).client.close()
    keys = keys_of_thirds(lone)
    frozen = next(i for i in range(3) if lone.primaries[i] not in (lone.owner("{doc}"), lone.owner("{fleet}")))
    with crowd(lone.url, 3, keys=keys, pause=0.002, timeout=0.2) as asking:
        asking.go()
        assert eventually(lambda: all(asking.all_have(key, "store", 0.0, times=20) for key in keys), 20)
        frozen_at = time.time()
        lone.primaries[frozen].freeze()
        assert eventually(lambda: asking.all_have(keys[frozen], "fallback", frozen_at, times=100), 60)
        thawed_at = time.time()
        lone.primaries[frozen].thaw()
        assert eventually(lambda: asking.all_have(keys[frozen], "store", thawed_at, times=5), 20)
        asking.stop()
        ledger = asking.ledger()
    during = [line for line in ledger if frozen_at < line.at < thawed_at]
    waited = Counter(line.process for line in during if line.who == keys[frozen] and line.cause not in ("", "away"))

    others = [line.source for line in during if line.who != keys[frozen]]
    # Two cores for nine processes: one in a hundred may meet a scheduler that takes longer than the budget.
    assert others.count("store") >= 0.99 * len(others)
    assert max(waited.values()) <= FAILURES_TO_OPEN
    assert {line.source for line in ledger[-9:]} == {"store"}


@pytest.mark.parametrize("rule", ["local", "deny"])
def test_keys_of_a_node_that_is_away_are_decided_without_a_call(lone, rule):
    """As of a single store. A call that cannot be sent would take others the time that it costs to find that out."""
    World(lone.url).client.close()
    keys = keys_of_thirds(lone)
    number = next(i for i in range(3) if lone.primaries[i] not in (lone.owner("{doc}"), lone.owner("{fleet}")))
    limit, calls = replace(LIMIT, on_store_failure=rule), []
    with Limiter(lone.url, timeout=0.05) as limiter:
        limiter.hit(limit, keys[number])
        lone.primaries[number].freeze()
        assert eventually(lambda: limiter.hit(limit, keys[number]).cause == "away")
        limiter.time_store_calls(calls.append)
        causes = {limiter.hit(limit, keys[number]).cause for _ in range(50)}
        lone.primaries[number].thaw()

    assert causes == {"away"}
    assert calls == []


@pytest.mark.parametrize("mode", ["cut", "swallow"])
def test_a_node_that_fails_every_other_call_is_not_taken_back(lone, mode):
    """Three decisions in a row must come in time, as of a single store: the node is left once, after five failures."""
    World(lone.url).client.close()
    keys = keys_of_thirds(lone)
    number = next(i for i in range(3) if lone.primaries[i] not in (lone.owner("{doc}"), lone.owner("{fleet}")))
    node, path = lone.primaries[number], FaultyPath(lone.primaries[number].port)
    execute(node, "CONFIG", "SET", "cluster-announce-port", path.port)
    assert eventually(lambda: all(f":{path.port}@" in execute(server, "CLUSTER", "NODES") for server in lone.primaries))
    limiter = Limiter(lone.url, timeout=0.1)
    limiter.hit(LIMIT, keys[number])
    path.every, path.only, path.mode = 2, b"FCALL", mode
    end = time.monotonic() + scale(1.0, 1.5)
    causes = []
    while time.monotonic() < end:
        causes.append(limiter.hit(LIMIT, keys[number]).cause)
        time.sleep(0.005)
    path.mode = "pass"
    stats = limiter.stats()
    healed = eventually(lambda: limiter.hit(LIMIT, keys[number], 0).source == "store")
    limiter.close()
    execute(node, "CONFIG", "SET", "cluster-announce-port", 0)
    path.close()

    assert 1 <= sum(cause not in ("", "away") for cause in causes) <= FAILURES_TO_OPEN
    assert stats.outages == 1
    assert healed


def test_a_failover_under_load_is_followed(doubled):
    """A primary is killed under three processes: its keys come back with its replica, and the others never left."""
    World(doubled.url).client.close()
    keys = keys_of_thirds(doubled)
    with crowd(doubled.url, 3, keys=keys, pause=0.003, timeout=0.1) as asking:
        asking.go()
        time.sleep(0.5)
        killed_at = time.time()
        doubled.primaries[1].kill()
        assert eventually(lambda: doubled.promoted(1), 15)
        promoted_at = time.time()
        assert eventually(lambda: asking.all_have(keys[1], "store", promoted_at, times=5), 20)
        asking.stop()
        ledger = asking.ledger()
    lost = [line for line in ledger if line.who == keys[1] and line.at > killed_at]

    assert {line.source for line in ledger if line.who != keys[1]} == {"store"}
    assert "fallback" in {line.source for line in lost}
    for process in range(3):
        back = min(line.at for line in lost if line.process == process and line.source == "store")
        assert back - promoted_at < 5.0
        assert [line.source for line in lost if line.process == process][-1] == "store"
    admitted = sum(line.allowed for line in ledger if line.who == keys[1])
    last_moments = sum(line.who == keys[1] and killed_at - 1.0 < line.at <= killed_at for line in ledger)
    limiter = Limiter(doubled.url, timeout=1.0)
    charged = LIMIT.quota - limiter.peek(LIMIT, keys[1]).remaining
    assert admitted - last_moments <= charged <= admitted + 3
    limiter.close()


def test_a_node_that_answers_and_does_not_decide_is_left_alone(lone):
    """Out of memory, it refuses every charge: a few requests find out, and no more until it takes one again."""
    World(lone.url).client.close()
    keys = keys_of_thirds(lone)
    limiter = Limiter(lone.url, timeout=0.1)
    for key in keys:
        limiter.hit(LIMIT, key)
    execute(lone.primaries[0], "CONFIG", "SET", "maxmemory", "1")
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        sources = [limiter.hit(LIMIT, key).source for key in keys]

    assert sources == ["fallback", "store", "store"]
    assert limiter._engine.counts.failures["oom"] <= 5
    execute(lone.primaries[0], "CONFIG", "SET", "maxmemory", "0")
    assert eventually(lambda: limiter.hit(LIMIT, keys[0], 0).source == "store")
    limiter.close()


def test_a_global_limit_whose_node_is_away_leaves_the_project_to_the_store(lone):
    """Only the global part is decided alone: the project's quota stays exact, and what is global is charged later."""
    world = World(lone.url)
    limiter = Limiter(lone.url, timeout=0.1)
    limiter.start(0.0)
    world.followers.append(limiter)
    secrets = spread(world, everyone=[fixed(100, name="all")], project=[fixed(4)])
    away = lone.owner("{global}")
    mine = next(i for i in range(PROJECTS) if lone.owner(f"{{proj_{i}}}") is not away)
    limiter.check(secrets[mine])
    away.kill()

    decisions = [limiter.check(secrets[mine]) for _ in range(6)]

    assert [d.allowed for d in decisions] == [True] * 3 + [False] * 3
    assert {d.source for d in decisions[:4]} == {"fallback"}
    assert decisions[3].denied_by == ("rpm",)
    away.start()
    assert eventually(lambda: limiter.check(secrets[mine], costs=0).source == "store", 10)
    assert eventually(lambda: used(limiter, secrets[mine]) == {"all": 3, "rpm": 4})
    limiter.close()
    world.client.close()


def test_the_node_of_the_usage_may_be_away(lone):
    """Requests are decided by the store; the usage arrives when its node is back."""
    world = World(lone.url)
    limiter = Limiter(lone.url, timeout=0.1)
    limiter.start(0.0)
    world.followers.append(limiter)
    secret = world.everything(fixed(50))
    assert lone.owner("{usage}") not in (lone.owner("{doc}"), lone.owner(f"{{{PROJECT}}}"))
    lone.owner("{usage}").kill()

    assert {limiter.check(secret).source for _ in range(20)} == {"store"}
    assert eventually(lambda: "usage" in limiter._engine.health.connector.duty_failures.failing)

    lone.owner("{usage}").start()
    with pytest.raises(RedisError):  # it knows its slots again and not yet whether others do
        world.client.xlen(Keys().usage)
    assert eventually(lambda: "usage" not in limiter._engine.health.connector.duty_failures.failing, 10)
    assert world.client.xlen(Keys().usage) >= 1
    limiter.close()
    world.client.close()
