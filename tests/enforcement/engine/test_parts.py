"""Global limits of a cluster at the worst moments: between its two calls, and while nodes change their roles."""

import asyncio
import json
import time
from collections import Counter

import pytest

from enforcement import Denied, Limit, Limiter, aio
from enforcement.http.usage_request import UsageRequest, usage_answer
from enforcement.store.cluster.slot_map import slot_of
from tests.enforcement.clustered import PROJECTS, keys_of_thirds, spread, used
from tests.enforcement.crowd import crowd
from tests.enforcement.topologies import Cluster, execute
from tests.enforcement.world import World, eventually, fixed
from tests.scale import scale


@pytest.fixture
def world(cluster):
    world = World(cluster.url)
    yield world
    world.client.close()


def apart(cluster):
    """Return a project whose counters are neither where the global ones are, nor where heartbeats are written."""
    taken = (cluster.owner("{global}"), cluster.owner("{fleet}"))
    return next(i for i in range(PROJECTS) if cluster.owner(f"{{proj_{i}}}") not in taken)


def test_own_limits_are_read_from_every_slot_or_not_at_all(cluster, world):
    """Those of the project and the global ones lie on different nodes; a page without one of them would mislead."""
    everyone = [fixed(100, name="all"), fixed(50, name="all-ip", partition_by=["ip"])]
    secrets, number = spread(world, everyone=everyone, project=[fixed(10)]), apart(cluster)
    asked = UsageRequest("GET", lambda: secrets[number], lambda: {"ip": "192.0.2.1"}, "ietf")
    with Limiter(cluster.url, timeout=1.0) as limiter:
        assert limiter.check(secrets[number], attributes={"ip": "192.0.2.1"}).allowed
        page = json.loads(usage_answer(limiter, asked).body)
        cluster.owner("{global}").freeze()
        without = usage_answer(limiter, asked)
        cluster.owner("{global}").thaw()

    rows = [(row["limit"], row["used"], row["left"]) for row in page["limits"]]
    assert rows == [("all", 1, 99), ("all-ip", 1, 49), ("rpm", 1, 9)]
    assert (without.status, b'"limits"' in without.body) == (503, False)


@pytest.mark.parametrize(
    ("quota", "frozen", "left"),
    [(100, "project", {"all": 2, "rpm": 2}), (1, "global", {"all": 1, "rpm": 1})],
)
async def test_a_request_cancelled_between_two_slots_is_charged_to_both_or_none(cluster, world, quota, frozen, left):
    """
    Its caller goes while the project's node, or the global one, has the call and does not answer. Allowed, it is
    charged to both; denied by the second, it is given back to the first.
    """
    secrets, number = spread(world, everyone=[fixed(quota, name="all")], project=[fixed(50)]), apart(cluster)
    secret, nodes = secrets[number], {"project": f"{{proj_{number}}}", "global": "{global}"}
    async with aio.Limiter(cluster.url, timeout=10.0) as limiter:
        assert (await limiter.check(secret)).allowed
        server = cluster.owner(nodes[frozen])
        server.freeze()
        task = asyncio.create_task(limiter.check(secret))
        await asyncio.sleep(0.05)  # the call is on its way
        task.cancel()
        await asyncio.wait([task])
        server.thaw()

        assert task.cancelled()
        with Limiter(cluster.url, timeout=1.0) as other:
            end = time.monotonic() + 5
            while (found := used(other, secret)) != left and time.monotonic() < end:
                await asyncio.sleep(0.01)
    assert found == left


@pytest.mark.parametrize("node", ["project", "global"])
@pytest.mark.parametrize(("end", "charged"), [("leave", 1), ("cancel", 0), ("settle", 3)])
def test_an_admission_whose_node_did_not_answer_leaves_what_it_cost(cluster, world, node, end, charged):
    """The node executes the call when it goes on: neither slots nor permits stay that were left or given back."""
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60}
    secrets, number = spread(world, everyone=[fixed(100, name="all")], project=[fixed(50), slots]), apart(cluster)
    secret, server = secrets[number], cluster.owner({"project": f"{{proj_{number}}}", "global": "{global}"}[node])
    with Limiter(cluster.url, timeout=0.3) as limiter:
        assert eventually(lambda: limiter.check(secret, costs=0).source == "store")
        server.freeze()
        with limiter.admit(secret) as admission:
            if end != "leave":
                admission.cancel() if end == "cancel" else admission.settle(charged)
        server.thaw()

        assert (admission.decision.source, admission.decision.cause) == ("fallback", "timeout")
        assert eventually(lambda: not limiter._engine.fallback.owes())
    with Limiter(cluster.url, timeout=1.0) as other:
        assert used(other, secret) == {"all": charged, "rpm": charged, "slots": 0}


def test_a_slot_is_given_back_that_a_node_may_have_given_before_another_denied(cluster, world):
    """The project's node did not answer, this process gave the slot, and the global limit is exhausted."""
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 5, "window_seconds": 60}
    secrets, number = spread(world, everyone=[fixed(1, name="all")], project=[fixed(50), slots]), apart(cluster)
    secret, server = secrets[number], cluster.owner(f"{{proj_{number}}}")
    with Limiter(cluster.url, timeout=0.1) as limiter:
        with limiter.admit(secret):
            pass
        server.freeze()
        with pytest.raises(Denied), limiter.admit(secret):
            pytest.fail("the global quota was exceeded")
        server.thaw()
        assert eventually(lambda: not limiter._engine.fallback.owes())
    with Limiter(cluster.url, timeout=1.0) as other:
        assert used(other, secret) == {"all": 1, "rpm": 1, "slots": 0}


def test_a_process_killed_between_two_slots_leaves_no_more_than_its_own_charge(cluster, world):
    """
    Three die while the global node has their calls and does not answer: the projects' counters have one each too many
    at most, and the global limit admits what it has left, not one more.
    """
    secrets, number = spread(world, everyone=[fixed(10, name="all")], project=[fixed(50)]), apart(cluster)
    secret, project, everyone = secrets[number], cluster.owner(f"{{proj_{number}}}"), cluster.owner("{global}")
    with crowd(cluster.url, 3, tokens=[secret], calls=1, timeout=10.0) as asking:
        before = calls(project)
        everyone.freeze()
        asking.go()
        assert eventually(lambda: calls(project) == before + 3)
        for process in asking.processes:
            process.kill()
        everyone.thaw()

    with Limiter(cluster.url, timeout=1.0) as limiter:
        assert eventually(lambda: limiter.check(secret, costs=0).source == "store")
        counted = used(limiter, secret)
        admitted = sum(limiter.check(secret).allowed for _ in range(20))
        assert used(limiter, secret) == {"all": 10, "rpm": counted["rpm"] + admitted}
    assert counted["rpm"] == 3
    assert admitted == 10 - counted["all"] >= 7


def calls(server):
    """Return how many functions a node has executed."""
    return execute(server, "INFO", "commandstats").get("cmdstat_fcall", {"calls": 0})["calls"]


@pytest.mark.proof
@pytest.mark.parametrize("consistency", scale(["strict"], ["strict", "leased"]))
def test_replicas_take_over_on_request_and_a_global_quota_stays_exact(consistency):
    """
    Under three processes the global node and another hand over to their replicas, and the slot of global limits moves
    and comes back: no decision is made without the store, and each permit of the quota is given once, also by leases.
    """
    quota = scale(2_000, 6_000)
    with Cluster() as cluster:
        world, first = World(cluster.url), cluster.index_of("{global}")
        secrets = spread(
            world, everyone=[fixed(quota, name="all", consistency=consistency)], project=[fixed(1_000_000)]
        )
        with (
            crowd(cluster.url, 3, tokens=secrets, seconds=120, pause=0.003, timeout=2.0) as asking,
            Limiter(cluster.url, timeout=2.0) as limiter,
        ):
            asking.go()
            time.sleep(0.3)
            for i in (first, (first + 1) % 3):
                execute(cluster.replicas[i], "CLUSTER", "FAILOVER")
                assert eventually(lambda i=i: cluster.promoted(i), 10)
            away_and_back(cluster, first)
            assert eventually(lambda: used(limiter, secrets[0]).get("all") == quota, 60)
            asking.stop()
            ledger = asking.ledger()
        admitted = Counter(line.who for line in ledger if line.allowed)

        assert {line.source for line in ledger} <= {"store", "denial_cache"}
        assert sum(admitted.values()) == quota
        with Limiter(cluster.url, timeout=1.0) as limiter:
            assert {secret: used(limiter, secret)["rpm"] for secret in secrets} == admitted
            assert used(limiter, secrets[0])["all"] == quota
        world.client.close()
        redirected = [execute(server, "INFO", "errorstats") for server in cluster.servers]
        assert any("errorstat_MOVED" in errors for errors in redirected)
        assert any("errorstat_ASK" in errors for errors in redirected)
        assert not any("errorstat_CROSSSLOT" in errors for errors in redirected)


def away_and_back(cluster, first):
    """Move the slot of global limits from the replica that serves it now to a primary that stayed, and back."""
    slot, pair = slot_of(b"{global}"), [cluster.replicas[first], cluster.primaries[(first + 2) % 3]]
    assert eventually(lambda: cluster.knows(pair[1], pair[0]), 10)
    for source, target in (pair, pair[::-1]):
        cluster.begin_move(slot, source, target)
        time.sleep(0.1)  # asked on both sides meanwhile
        cluster.move_keys(slot, source, target)
        cluster.end_move(slot, target, source)


def test_limits_in_code_of_different_keys_are_charged_to_all_nodes_or_none(cluster, world):
    """Their counters lie in several slots; a denial by the last gives back what the others had charged."""
    keys = keys_of_thirds(cluster)
    names = [Limit(name=f"n{i}", quota=quota, window_seconds=3_600) for i, quota in enumerate((9, 9, 2))]
    pairs = list(zip(names, keys, strict=True))
    with Limiter(cluster.url, timeout=5.0) as limiter:
        outcomes = [limiter.hit(pairs) for _ in range(3)]
        assert [decision.denied_by for decision in outcomes] == [(), (), ("n2",)]
        assert [state.remaining for state in limiter.peek(pairs).limits] == [7, 7, 0]
        limiter.reset(pairs)
        assert [state.remaining for state in limiter.peek(pairs).limits] == [9, 9, 2]
        with limiter.admit(pairs, costs=2) as admission:
            admission.settle(1)
        assert [state.remaining for state in limiter.peek(pairs).limits] == [8, 8, 1]


LEASED = {"consistency": "leased"}


@pytest.mark.parametrize(
    ("everyone", "own", "most", "source"),
    [(LEASED, {}, 1.02, "store"), ({}, LEASED, 1.02, "store"), (LEASED, LEASED, 0.04, "lease")],
)
def test_a_part_on_lease_costs_no_call(cluster, world, lease_clock, everyone, own, most, source):
    """A decision of two slots is one call where one part is on lease, and none where both are."""
    project = [fixed(1_000_000, **own)]
    secrets = spread(world, everyone=[fixed(1_000_000, name="all", **everyone)], project=project)[:2]
    with Limiter(cluster.url, timeout=1.0) as limiter:
        sources = Counter()
        for step in range(1_000):
            if step == 300:
                before, sources = sum(map(calls, cluster.primaries)), Counter()
            sources[limiter.check(secrets[step % 2]).source] += 1
            lease_clock.now += 0.001
            lease_clock.settle(limiter)
        asked = sum(map(calls, cluster.primaries)) - before
        counted = {count.source: count.count for count in limiter.stats().decisions}

    assert asked / 700 <= most
    assert sources[source] > 690
    assert sum(counted.values()) == 1_000
    with Limiter(cluster.url, timeout=1.0) as other:
        assert eventually(lambda: used(other, secrets[0]) == {"all": 1_000, "rpm": 500})


def test_permits_at_hand_need_no_node(cluster, world, lease_clock):
    """While the global node does not answer, its permits on lease are used up. Then this process decides that part."""
    secrets, number = spread(world, everyone=[fixed(1_000, name="all", **LEASED)], project=[fixed(50)]), apart(cluster)
    with Limiter(cluster.url, timeout=0.3) as limiter:
        for _ in range(30):
            assert limiter.check(secrets[number]).allowed
            lease_clock.settle(limiter)
        assert limiter.stats().lease_permits_held > 20
        cluster.owner("{global}").freeze()
        sources = [limiter.check(secrets[number]).source for _ in range(5)]
        dry = limiter.check(secrets[number], costs=16)
        cluster.owner("{global}").thaw()

        assert sources == ["store"] * 5
        assert (dry.allowed, dry.denied_by) == (False, ("rpm",))
    with Limiter(cluster.url, timeout=1.0) as other:
        assert eventually(lambda: used(other, secrets[number]) == {"all": 35, "rpm": 35})


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="thousands of decisions of three processes: make proof")
def test_processes_with_permits_of_a_global_limit_stay_within_it(cluster, world):
    """
    The global node stands still for a while, and one of three processes is killed with its permits: what it held is
    lost, within the bound, all else is admitted, and no more.
    """
    quota = 20_000
    secrets = spread(world, everyone=[fixed(quota, name="all", **LEASED)], project=[fixed(1_000_000)])
    with crowd(cluster.url, 3, tokens=secrets, seconds=300, timeout=1.0) as asking:

        def decided(allowed=True):
            return sum(line.allowed is allowed for said in map(list, asking.said) for line in said)

        asking.go()
        assert eventually(lambda: decided() > 3_000, 60)
        cluster.owner("{global}").freeze()
        time.sleep(0.5)
        cluster.owner("{global}").thaw()
        assert eventually(lambda: decided() > 8_000, 60)
        asking.processes[0].kill()
        assert eventually(lambda: decided(False) > 100, 200)
        asking.stop()
        for reader in asking._readers:
            reader.result(60)
        admitted = decided()

    assert quota * 0.9 - 100 <= admitted <= quota
    with Limiter(cluster.url, timeout=1.0) as limiter:
        assert eventually(lambda: used(limiter, secrets[0])["all"] <= quota)
        assert admitted <= sum(used(limiter, secret)["rpm"] for secret in secrets) <= admitted + 2
