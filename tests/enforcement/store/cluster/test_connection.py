"""A cluster that is well: every verb, slots that move while they are used, global limits in a slot of their own."""

import asyncio
import json

import pytest

from enforcement import Denied, Limit, Limiter, aio
from enforcement.engine import parts
from enforcement.model.keys import Keys
from enforcement.store.cluster import slot_map
from enforcement.store.cluster.slot_map import slot_of
from enforcement.store_calls.acl import enforcer
from tests.enforcement.clustered import HOUR, LIMIT, PROJECTS, counter_of, keys_of_thirds, spread, used
from tests.enforcement.crowd import crowd
from tests.enforcement.topologies import execute
from tests.enforcement.vectors import Processes, Scenario, SyncDoor, load_vectors
from tests.enforcement.world import World, eventually, fixed
from tests.scale import scale


@pytest.fixture
def world(cluster):
    """Give a publisher on an empty cluster whose nodes all have the library."""
    world = World(cluster.url)
    yield world
    world.client.close()


@pytest.fixture
def limiter(make_limiter, cluster, world):
    return world.follow(make_limiter(cluster.url))


def test_vectors_hold_on_a_cluster(cluster, world):
    """Every scenario ends as it does on one server."""
    processes = Processes(cluster.url)
    try:
        for vector in load_vectors():
            Scenario(vector, SyncDoor, cluster.url, processes).run()
    finally:
        processes.close()


def test_no_call_of_any_verb_crosses_slots(cluster, limiter, world):
    """A token of three policies is checked, admitted, settled, cancelled, leased and renewed, and no node complains."""
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 3, "window_seconds": 1}
    leased = fixed(10_000, name="leased", consistency="leased")
    secrets = spread(
        world, everyone=[fixed(1_000, name="all"), {**slots, "name": "global-slots"}], project=[slots, leased]
    )

    for secret in secrets:
        with limiter.admit(secret, costs={"requests": 3}) as admission:
            assert admission.decision.source == "store"
            admission.settle(2)
    with pytest.raises(KeyError), limiter.admit(secrets[0], costs=2):
        raise KeyError

    assert used(limiter, secrets[0]) == {"all": 2 * PROJECTS, "global-slots": 0, "slots": 0, "leased": 2}
    for server in cluster.primaries:
        assert "errorstat_CROSSSLOT" not in execute(server, "INFO", "errorstats")


def test_slots_of_both_kinds_are_renewed(limiter, world):
    """A block that lasts longer than the lifetime of its slots still holds the project's and the global one."""
    slots = {"name": "mine", "algorithm": "concurrency", "quota": 1, "window_seconds": 1}
    secrets = spread(world, everyone=[{**slots, "name": "everyones"}], project=[slots])

    with limiter.admit(secrets[0]):
        asyncio.run(asyncio.sleep(1.2))  # a real lifetime passes: that is what is tested
        with pytest.raises(Denied) as denied, limiter.admit(secrets[0]):
            pass
    assert sorted(denied.value.decision.denied_by) == ["everyones", "mine"]
    with limiter.admit(secrets[0]) as admission:
        assert admission.decision.allowed


def test_documents_log_heartbeat_and_usage_work(limiter, world):
    """A change is obeyed at once, the instance is seen, and its usage arrives."""
    secret = world.everything(fixed(5))
    assert limiter.check(secret).limit.quota == 5
    world.publish(world.policy("api", fixed(7)))
    assert limiter.check(secret).limit.quota == 7

    keys = Keys()
    assert eventually(lambda: world.client.zcard(keys.instances) == 1)
    instance = limiter._engine.agent.identity.id
    assert eventually(lambda: json.loads(world.client.get(keys.instance(instance)))["revision"] == world.revision)
    assert eventually(lambda: world.client.xlen(keys.usage) >= 1)


def test_a_node_that_lost_the_functions_gets_them_back(cluster, limiter, world):
    """Each primary has its own copy; decisions go on in the store, without a pause."""
    for key in keys_of_thirds(cluster):
        limiter.hit(LIMIT, key)
    for server in cluster.primaries:
        execute(server, "FUNCTION", "FLUSH")

    assert {limiter.hit(LIMIT, key).source for key in keys_of_thirds(cluster)} == {"store"}


def test_leases_are_taken_in_one_slot_and_in_several(limiter, world):
    """A leased limit of a project is handed out here, also beside a leased global one."""
    leased = fixed(100_000, consistency="leased")
    secret = world.everything(leased)
    sources = [limiter.check(secret).source for _ in range(3_000)]
    assert "lease" in sources

    secrets = spread(world, everyone=[fixed(100_000, name="all", consistency="leased")], project=[leased])
    sources = [limiter.check(secrets[0]).source for _ in range(3_000)]
    assert "lease" in sources


def test_a_reset_and_a_look_reach_every_slot(limiter, world):
    """The control plane's view of a token that falls under a global policy, and its reset."""
    secrets = spread(world, everyone=[fixed(50, name="all")], project=[fixed(9)])
    for _ in range(4):
        limiter.check(secrets[0])
    limiter.hit(LIMIT, "k")
    limiter.reset(LIMIT, "k")

    assert limiter.peek(LIMIT, "k").remaining == 10
    assert used(limiter, secrets[0]) == {"all": 4, "rpm": 4}


def test_an_account_of_an_enforcer_suffices(cluster, world):
    """With the rights of a proxy nodes are found, slots that move are followed, and nothing is refused."""
    for server in cluster.primaries:
        execute(server, "ACL", "SETUSER", "enforcer", "on", ">secret", *enforcer(Keys()))
    key = keys_of_thirds(cluster)[0]
    slot, source, target = slot_of(counter_of(key).encode()), cluster.primaries[0], cluster.primaries[1]
    cluster.begin_move(slot, source, target)

    decisions = _hits(cluster.url.replace("://", "://enforcer:secret@"), key, 2, awaited=False)

    assert [(d.source, d.remaining) for d in decisions] == [("store", 9), ("store", 8)]
    for server in cluster.primaries:
        assert not execute(server, "ACL", "LOG")
        execute(server, "ACL", "DELUSER", "enforcer")
    cluster.move(slot, source, target)
    cluster.move(slot, target, source)


# Slots that move.


def test_a_slot_that_moved_is_found_with_one_redirection(cluster, limiter, world):
    """The decision is the store's; the next one goes straight to the new owner."""
    key = keys_of_thirds(cluster)[0]
    limiter.hit(LIMIT, key)
    counter = counter_of(key)
    slot, source, target = slot_of(counter.encode()), cluster.primaries[0], cluster.primaries[1]
    cluster.move(slot, source, target)

    before = _calls(source)
    decisions = [limiter.hit(LIMIT, key) for _ in range(3)]

    assert [(d.source, d.remaining) for d in decisions] == [("store", 8), ("store", 7), ("store", 6)]
    assert _calls(source) == before
    assert execute(target, "EXISTS", counter) == 1
    cluster.move(slot, target, source)


def test_control_without_redirections_the_moved_slot_is_lost(cluster, world, monkeypatch):
    """The move is real: who follows no redirection decides without the store."""
    monkeypatch.setattr("enforcement.store.cluster.connection.MAX_REDIRECTS", 0)
    monkeypatch.setattr(slot_map.SlotMap, "follow", lambda self, redirection, sender: sender)
    key = keys_of_thirds(cluster)[0]
    limiter = Limiter(cluster.url, timeout=1.0)
    limiter.hit(LIMIT, key)
    slot, source, target = slot_of(counter_of(key).encode()), cluster.primaries[0], cluster.primaries[1]
    cluster.move(slot, source, target)

    assert limiter.hit(LIMIT, key).source == "fallback"

    cluster.move(slot, target, source)
    limiter.close()


@pytest.mark.parametrize("awaited", [False, True])
def test_a_slot_on_its_way_is_asked_where_its_keys_go(cluster, world, awaited):
    """A counter that the source no longer has is counted at the target, before the slot is the target's."""
    key = keys_of_thirds(cluster)[0]
    source, target = cluster.primaries[:2]
    counter = counter_of(key)
    slot = slot_of(counter.encode())
    cluster.begin_move(slot, source, target)

    decisions = _hits(cluster.url, key, 3, awaited=awaited)

    assert [(d.source, d.remaining) for d in decisions] == [("store", 9), ("store", 8), ("store", 7)]
    assert execute(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    cluster.move(slot, source, target)
    cluster.move(slot, target, source)


def test_keys_on_both_sides_of_a_move_cost_one_decision_and_no_node(cluster, limiter, world):
    """One counter has moved and the other has not: this process decides, and goes on asking the node for others."""
    key = keys_of_thirds(cluster)[0]
    pair = [LIMIT, Limit(name="second", quota=10, window_seconds=HOUR)]
    plan = limiter._engine.planner.plan_in_code(pair, key)
    limiter.hit(pair, key)
    slot, source, target = slot_of(plan.keys[0].encode()), cluster.primaries[0], cluster.primaries[1]
    cluster.begin_move(slot, source, target)
    execute(source, "MIGRATE", "127.0.0.1", target.port, plan.keys[0], 0, 1000)

    split = [limiter.hit(pair, key).source for _ in range(5)]

    assert split == ["fallback"] * 5
    assert limiter._engine.health.connector.slot_map.away() == []
    cluster.move_keys(slot, source, target)
    cluster.move(slot, source, target)
    assert eventually(lambda: limiter.hit(pair, key, 0).source == "store")
    # What was admitted meanwhile is charged by now.
    assert eventually(lambda: limiter.peek(pair, key).remaining == 10 - 1 - 5)
    cluster.move(slot, target, source)


@pytest.mark.proof
def test_slots_move_under_load_and_nothing_is_lost(cluster, world):
    """Two processes ask for three keys while slots go round: each decision is the store's, and each is counted."""
    keys = keys_of_thirds(cluster)
    limiter = Limiter(cluster.url, timeout=1.0)
    limit = Limit(name="rate", quota=1_000_000, window_seconds=86_400)
    counters = [counter_of(key) for key in keys]
    with crowd(cluster.url, 2, keys=keys, seconds=120, pause=0.002, timeout=1.0) as asking:
        asking.go()
        # Two rounds meet a slot in each state: at its source, on its way, and at its target.
        for _ in range(scale(2, 30)):
            for i, counter in enumerate(counters):
                slot = slot_of(counter.encode())
                cluster.move(slot, cluster.primaries[i], cluster.primaries[(i + 1) % 3])
                cluster.move(slot, cluster.primaries[(i + 1) % 3], cluster.primaries[i])
        asking.stop()
        ledger = asking.ledger()

    assert len(ledger) > scale(100, 500)
    assert {line.source for line in ledger} == {"store"}
    for key in keys:
        asked = sum(line.who == key for line in ledger)
        assert limiter.peek(limit, key).remaining == 1_000_000 - asked
    moved = sum(
        execute(server, "INFO", "errorstats").get("errorstat_MOVED", {"count": 0})["count"]
        for server in cluster.primaries
    )
    assert moved > 0
    limiter.close()


# Global limits.


def test_a_global_limit_is_exact_and_denials_leave_nothing(cluster, world):
    """
    Four processes ask for six projects of 40 each under a global limit of 150: 150 pass, no project more than 40, and
    each project's counter has what was admitted there.
    """
    secrets = spread(world, everyone=[fixed(150, name="all")], project=[fixed(40)])
    with crowd(cluster.url, 4, tokens=secrets, calls=20, timeout=1.0) as asking:
        asking.go()
        ledger = asking.ledger()
    admitted = {secret: sum(line.allowed for line in ledger if line.who == secret) for secret in secrets}

    assert {line.source for line in ledger} <= {"store", "denial_cache"}
    assert sum(admitted.values()) == 150
    assert max(admitted.values()) <= 40
    with Limiter(cluster.url, timeout=1.0) as limiter:
        assert {secret: used(limiter, secret)["rpm"] for secret in secrets} == admitted
        assert used(limiter, secrets[0])["all"] == 150


def test_control_without_the_undo_denied_requests_stay_charged(limiter, world, monkeypatch):
    """Giving back is what keeps a project's counter true."""
    secrets = spread(world, everyone=[fixed(2, name="all")], project=[fixed(40)])
    monkeypatch.setattr(parts, "correcting", lambda *rows, **options: iter(()))

    assert [limiter.check(secrets[0], costs=cost).allowed for cost in (2, 3, 1)] == [True, False, False]
    assert used(limiter, secrets[0])["rpm"] > 2


def test_a_denial_tells_of_all_limits_in_their_order(limiter, world):
    """Whoever denies, the states are those after the call, as one server would have told them."""
    secrets = spread(world, everyone=[fixed(5, name="all")], project=[fixed(3), fixed(100, name="day", seconds=86_400)])
    for _ in range(2):
        limiter.check(secrets[1])

    by_project = limiter.check(secrets[1], costs=2)
    by_everyone = limiter.check(secrets[2], costs=3) and limiter.check(secrets[3], costs=1)
    hopeless = limiter.check(secrets[4], costs=4)

    told = [(state.name, state.allowed, state.remaining) for state in by_project.limits]
    assert told == [("all", True, 3), ("rpm", False, 1), ("day", True, 98)]
    assert by_everyone.denied_by == ("all",)
    assert [(state.name, state.remaining) for state in by_everyone.limits] == [("all", 0), ("rpm", 3), ("day", 100)]
    assert (hopeless.reason, hopeless.retry_after_ms) == ("cost_exceeds_capacity", None)
    assert sorted(hopeless.denied_by) == ["all", "rpm"]


def test_an_undo_that_could_not_be_sent_is_owed_and_paid(limiter, world, monkeypatch):
    """The reply to giving back is lost: it is sent again later, and once only."""
    from enforcement.plan.commands import SETTLE
    from enforcement.store.errors import StoreError

    secrets = spread(world, everyone=[fixed(2, name="all")], project=[fixed(40)])
    pipe, lost = limiter._pipe, []
    call_again = pipe.call_again

    def losing(command, seconds):
        reply = call_again(command, seconds)
        if SETTLE.encode() in command and not lost:
            lost.append(command)
            raise StoreError("timeout")
        return reply

    monkeypatch.setattr(pipe, "call_again", losing)
    decisions = [limiter.check(secrets[0], costs=2), limiter.check(secrets[0], costs=1)]

    assert [d.allowed for d in decisions] == [True, False]
    assert len(lost) == 1
    assert eventually(lambda: not limiter._engine.fallback.batches())
    assert used(limiter, secrets[0]) == {"all": 2, "rpm": 2}


def test_shadows_and_overdrafts_of_both_slots(limiter, world):
    """A global shadow never denies, and settling above the estimate is written to both counters."""
    secrets = spread(world, everyone=[fixed(1, name="all", mode="shadow")], project=[fixed(10)])
    first, second = limiter.check(secrets[0]), limiter.check(secrets[0])
    assert (first.allowed, second.allowed) == (True, True)
    assert [state.allowed for state in second.limits] == [False, True]

    with limiter.admit(secrets[1], costs=1) as admission:
        admission.settle(4)
    assert used(limiter, secrets[1])["rpm"] == 4


async def test_three_hundred_tasks_on_three_nodes(cluster, world):
    """Each key's quota is admitted exactly, and a token under a global limit as well."""
    keys = keys_of_thirds(cluster)
    secrets = spread(world, everyone=[fixed(25, name="all")], project=[fixed(10)])
    async with aio.Limiter(cluster.url, timeout=2.0) as limiter:
        decisions = await asyncio.gather(*(limiter.hit(LIMIT, keys[i % 3]) for i in range(300)))
        checks = await asyncio.gather(*(limiter.check(secrets[i % 5]) for i in range(100)))

    assert sum(d.allowed for d in decisions) == 30
    assert {d.source for d in [*decisions, *checks]} <= {"store", "denial_cache"}
    assert sum(d.allowed for d in checks) == 25


def test_a_server_that_is_away_is_one_of_three(cluster, limiter, world, caplog):
    """The numbers of a limiter tell it, the log names it, and requests for the others are decided by the store."""
    away, *others = keys_of_thirds(cluster)
    cluster.owner(counter_of(away)).freeze()
    assert eventually(lambda: limiter.hit(LIMIT, away).source == "fallback" and limiter.stats().servers_away == 1, 10)
    sources = [limiter.hit(LIMIT, key).source for key in others]
    cluster.owner(counter_of(away)).thaw()

    assert sources == ["store", "store"]
    assert limiter.stats().outages == 1
    assert set(limiter.stats().store_failures) <= {"timeout", "connection"}
    assert eventually(lambda: limiter.stats().servers_away == 0)
    server = f"The store's server 127.0.0.1:{cluster.owner(counter_of(away)).port} is"

    def reported():
        return [line.partition(server)[2].split(" ")[1] for line in caplog.messages if server in line]

    assert eventually(lambda: reported()[-1] == "back")  # written after the server counts as back
    assert reported()[0] == "away"


def test_a_limiter_used_after_it_was_closed_finds_a_server_again(cluster, limiter, world):
    """Also limits in code, which start it in silence, need what looks after the servers."""
    away = keys_of_thirds(cluster)[0]
    limiter.close()
    cluster.owner(counter_of(away)).freeze()
    assert eventually(lambda: limiter.hit(LIMIT, away).source == "fallback" and limiter.stats().servers_away == 1, 10)
    cluster.owner(counter_of(away)).thaw()

    assert eventually(lambda: limiter.stats().servers_away == 0)
    assert limiter.hit(LIMIT, away).source == "store"


def _hits(url, key, count, *, awaited):
    if not awaited:
        limiter = Limiter(url, timeout=1.0)
        decisions = [limiter.hit(LIMIT, key) for _ in range(count)]
        limiter.close()
        return decisions

    async def ask_awaited():
        limiter = aio.Limiter(url, timeout=1.0)
        decisions = [await limiter.hit(LIMIT, key) for _ in range(count)]
        await limiter.close()
        return decisions

    return asyncio.run(ask_awaited())


def _calls(server):
    """Return how many function calls a node has executed."""
    return execute(server, "INFO", "commandstats").get("cmdstat_fcall", {"calls": 0})["calls"]


def test_caps_hold_in_every_slot(limiter, world):
    """A value is enrolled where its counter is, be it the project's or the global one; each project has its places."""
    by_user = {"seconds": HOUR, "partition_by": ["user"]}
    secrets = spread(
        world, everyone=[fixed(1_000, name="all", **by_user)], project=[fixed(1_000, name="user", **by_user)]
    )
    world.publish(world.project(ident="proj_0", partition_cap=2))

    def overflows(secret, names):
        decisions = [limiter.check(secret, attributes={"user": name}) for name in names]
        assert {decision.source for decision in decisions} == {"store"}
        return [[state.overflow for state in decision.limits] for decision in decisions]

    assert overflows(secrets[0], "abcda") == [[False, False]] * 2 + [[True, True]] * 2 + [[False, False]]
    assert overflows(secrets[1], "abcd") == [[False, False]] * 4
    assert used(limiter, secrets[0]) == {}
    assert limiter.check(secrets[0], attributes={"user": "e"}).limits[1].remaining == 1_000 - 3
