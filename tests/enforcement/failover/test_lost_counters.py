"""Durable quotas, as enforcers see them: a store that lost their counters is not trusted until it has them back."""

import asyncio
import threading

import pytest

from enforcement import Limiter, aio
from enforcement.engine import agent
from enforcement.model.keys import WHOLE
from enforcement.model.tokens import mint
from enforcement.store_calls.checkpoints import (
    CheckpointReading,
    StoredCheckpoint,
    read_call,
    readings,
    restore_calls,
    strike_call,
)
from tests.enforcement.world import PROJECT, World, eventually, fixed

QUOTA = 100
MONTH = {"name": "month", "algorithm": "fixed_window", "quota": QUOTA, "calendar": "month"}
DIRTY = f"sg:{{{PROJECT}}}:changed"


@pytest.fixture
def alone(monkeypatch):
    """Wait for nobody else: there is one process, and it has paid."""
    monkeypatch.setattr("enforcement.failover.lost_counters.GRACE_SECONDS", 0.0)


def lose(world):
    """Leave of the counters what a store that restarted empty has."""
    for key in world.client.keys(f"sg:{{{PROJECT}}}:*"):
        world.client.delete(key)


def run(world, call):
    function, keys, arguments = call
    return world.client.fcall(function, len(keys), *keys, *arguments)


def checkpoint(world):
    """Read all that changed."""
    names = sorted(world.client.smembers(DIRTY) - {WHOLE})
    return list(readings(names, run(world, read_call(world.keys, PROJECT, names))))


def restore(world, read):
    """Do what a control plane does: raise the counters, then say that nothing is missing."""
    for call in restore_calls(world.keys, PROJECT, [reading.kept for reading in read]):
        run(world, call)
    world.client.sadd(DIRTY, WHOLE)


def says_that_nothing_is_left(decision):
    """Tell whether the store itself says so."""
    return (decision.source, decision.remaining) == ("store", 0)


# A store that lost its counters.


def test_a_lost_quota_is_decided_alone_and_a_rate_by_the_store(limiter, world):
    """Only what cannot be known is not asked there."""
    rate, quota = world.everything(fixed(5)), mint("live")
    world.publish(world.policy("quota", MONTH), {quota: world.token("pol_quota")})
    lose(world)

    by_quota, by_rate = limiter.check(quota), limiter.check(rate)

    assert (by_quota.source, by_quota.cause, by_quota.allowed) == ("fallback", "not_restored", True)
    assert by_rate.source == "store"
    assert limiter.state == "ok"
    assert world.client.exists(DIRTY) == 0


def test_what_passed_meanwhile_is_charged_on_top(limiter, world, alone):
    """60 before, 5 while nothing was known: 65 afterwards."""
    secret = world.everything(MONTH)
    limiter.check(secret, costs=60)
    kept = checkpoint(world)
    lose(world)
    assert [limiter.check(secret).source for _ in range(5)] == ["fallback"] * 5

    restore(world, kept)

    assert eventually(lambda: limiter.check(secret, costs=0).source == "store")
    assert limiter.check(secret, costs=0).remaining == QUOTA - 65
    assert not limiter._engine.fallback.owes()


def test_waiting_for_them_costs_the_store_and_this_process_no_more_by_and_by(limiter, world):
    """A control plane may be away for a day: what is owed stays one entry, and is offered to nobody meanwhile."""
    secret = world.everything(MONTH, fixed(100))
    limiter.check(secret)
    lose(world)

    def asked_for(seconds):
        world.client.config_resetstat()
        causes = []
        eventually(lambda: causes.append(limiter.check(secret).cause), seconds)
        return causes, world.client.info("commandstats")["cmdstat_sismember"]["calls"]

    asked_for(0.6)
    causes, looks = asked_for(1.0)

    assert {*causes} == {"not_restored"}
    assert 1 <= looks <= 6  # four times a second it looks whether they are back; each payment would look, too
    assert limiter.stats().journal_entries == 1


def test_a_rate_beside_a_lost_quota_is_charged_meanwhile(limiter, world):
    """The store has the counter of the one, if not of the other."""
    secret = world.everything(MONTH, fixed(100))
    limiter.check(secret)
    lose(world)
    assert [limiter.check(secret).cause for _ in range(5)] == ["not_restored"] * 5
    world.publish(world.policy("api", fixed(100)))

    assert eventually(lambda: limiter.check(secret, 0).source == "store" and limiter.check(secret, 0).remaining == 95)


def test_no_more_than_was_left_passes_meanwhile(limiter, world):
    """This process knows what remained when the store last spoke."""
    secret = world.everything(MONTH)
    limiter.check(secret, costs=QUOTA - 3)
    lose(world)

    assert sum(limiter.check(secret).allowed for _ in range(10)) == 3


def test_control_trusted_at_once_it_admits_a_whole_quota_again(limiter, world):
    """What would pass if an empty store were believed."""
    secret = world.everything(MONTH)
    limiter.check(secret, costs=QUOTA - 3)
    lose(world)
    world.client.sadd(DIRTY, WHOLE)

    assert sum(limiter.check(secret).allowed for _ in range(2 * QUOTA)) == QUOTA


@pytest.mark.proof(times=30)
def test_a_killed_store_lets_nothing_pass_twice(own_server, monkeypatch):
    """Killed and empty, under two limiters that go on asking: the fleet admits the quota, and not one more."""
    monkeypatch.setattr(agent, "HEARTBEAT_SECONDS", 0.1)  # they hear of each other soon
    world = World(own_server.url)
    secret = world.everything(MONTH)
    admitted, stop = [], threading.Event()

    def ask(limiter):
        while not stop.is_set():
            if limiter.check(secret).allowed:
                admitted.append(1)
            stop.wait(0.002)

    with Limiter(own_server.url, timeout=0.1) as one, Limiter(own_server.url, timeout=0.1) as two:
        for limiter in (one, two):
            limiter.check(secret, costs=20)
            assert eventually(lambda limiter=limiter: limiter._engine.agent.fleet_size == 2)
        one.check(secret, costs=0)  # both know now that 60 are left
        kept = checkpoint(world)
        own_server.kill()
        own_server.restart(empty=True)
        threads = [threading.Thread(target=ask, args=(limiter,)) for limiter in (one, two)]
        for thread in threads:
            thread.start()
        try:
            for limiter in (one, two):
                assert eventually(lambda limiter=limiter: limiter.check(secret, costs=0).cause == "not_restored")
            again = World(own_server.url)
            restore(again, kept)
            assert eventually(lambda: says_that_nothing_is_left(one.check(secret, costs=0)), 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert eventually(lambda: not one._engine.fallback.owes() and not two._engine.fallback.owes())
        assert says_that_nothing_is_left(one.check(secret, costs=0))

    assert 40 + len(admitted) == QUOTA


def test_a_settlement_waits_for_the_counter(limiter, world, alone):
    """Reserved before, given back while it was lost: the refund comes when there is something to give back to."""
    secret = world.everything(MONTH)
    with limiter.admit(secret, costs=60) as admission:
        kept = checkpoint(world)
        lose(world)
        admission.settle(10)
    assert world.client.keys(f"sg:{{{PROJECT}}}:c:*") == []

    restore(world, kept)

    assert eventually(lambda: limiter.check(secret, costs=0).remaining == QUOTA - 10)


def test_nothing_is_leased_from_a_store_that_lost_its_counters(limiter, world):
    """A lease is a charge."""
    secret = world.everything({**MONTH, "quota": 10**6, "consistency": "leased"})
    assert eventually(lambda: limiter.check(secret).source == "lease")
    lose(world)

    assert eventually(lambda: limiter.check(secret).cause == "not_restored")
    assert world.client.keys(f"sg:{{{PROJECT}}}:c:*") == []


def test_values_are_enrolled_when_the_counters_are_back(limiter, world, alone):
    """A new value of an attribute is decided alone too, and finds its place later."""
    secret = world.everything({**MONTH, "partition_by": ["user"]})
    lose(world)
    assert limiter.check(secret, attributes={"user": "ann"}).cause == "not_restored"

    restore(world, [])

    assert eventually(lambda: limiter.check(secret, costs=0, attributes={"user": "ann"}).source == "store")
    limiter.check(secret, attributes={"user": "ann"})
    assert eventually(lambda: limiter.check(secret, costs=0, attributes={"user": "ann"}).remaining == QUOTA - 2)


async def test_asyncio_waits_as_well(server, world, alone):
    """Both shells read the same replies."""
    secret = world.everything(MONTH)
    async with aio.Limiter(server.url, timeout=1.0) as limiter:
        await limiter.check(secret, costs=60)
        kept = checkpoint(world)
        lose(world)
        decisions = await asyncio.gather(*(limiter.check(secret) for _ in range(5)))
        restore(world, kept)

        assert {decision.cause for decision in decisions} == {"not_restored"}
        for _ in range(500):
            if (await limiter.check(secret, costs=0)).remaining == QUOTA - 65:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("What passed meanwhile was not charged.")


def test_a_store_that_lost_the_functions_too(limiter, world):
    """The first to miss them loads them, and then learns that the counters are lost."""
    secret = world.everything(MONTH)
    limiter.check(secret)
    lose(world)
    world.client.function_flush()

    assert limiter.check(secret).cause == "not_restored"


# The functions.


def test_all_keys_of_a_call_lie_in_one_slot(limiter, world):
    """The set of changed counters is named among them, as a cluster and accounts ask."""
    plan = limiter.check(world.everything(MONTH, fixed(5))).plan

    assert [key.rpartition(":")[2] for key in plan.touches[2:]] == ["changed"]
    assert {key[: key.index("}") + 1] for key in plan.touches} == {f"sg:{{{PROJECT}}}"}


def test_ordinary_limits_touch_nothing_else(limiter, world):
    """They cost what they did."""
    plan = limiter.check(world.everything(fixed(5))).plan

    assert plan.touches == plan.keys


def test_a_counter_is_struck_out_only_as_it_was_read(limiter, world):
    """What is charged between reading and striking stays to be read."""
    secret = world.everything(MONTH)
    limiter.check(secret)
    read = checkpoint(world)
    names = [reading.kept.counter for reading in read]
    limiter.check(secret)
    strike = strike_call(world.keys, PROJECT, names, read)

    assert run(world, strike) == 0
    assert run(world, strike_call(world.keys, PROJECT, names, checkpoint(world))) == 1
    assert world.client.smembers(DIRTY) == {WHOLE}


def test_what_is_no_counter_is_left_out_and_struck_out(world):
    """Somebody wrote to the store: nothing stops for that."""
    world.client.sadd(DIRTY, "f" * 26, "e" * 26, "d" * 26)
    world.client.rpush(f"sg:{{{PROJECT}}}:{'f' * 26}", "x")
    world.client.set(f"sg:{{{PROJECT}}}:{'e' * 26}", "short")
    world.client.set(f"sg:{{{PROJECT}}}:{'d' * 26}", b"\xff" * 24)

    assert checkpoint(world) == []
    names = ["f" * 26, "e" * 26]
    assert run(world, strike_call(world.keys, PROJECT, names, [])) == 2


@pytest.mark.parametrize(
    ("kept", "reading", "follows", "forgot"),
    [
        (None, (5, 1_000, 0), True, False),
        ((5, 1_000, 70), (9, 1_000, 70), True, False),
        ((5, 1_000, 70), (2, 1_000, 70), True, False),
        ((5, 1_000, 70), (9, 1_000, 71), True, False),
        ((5, 1_000, 70), (1, 1_000, 0), False, True),
        ((5, 1_000, 70), (4, 1_000, 69), False, True),
        ((5, 1_000, 70), (1, 2_000, 0), True, False),
        ((5, 2_000, 70), (9, 1_000, 60), False, False),
        ((5, 2_000, 8_000_000_000), (9, 1_000, 0), True, False),
    ],
    ids=[
        "the first", "more", "a refund", "a run that died", "lost", "set back", "a new window", "too late",
        "the clock was set back",
    ],
)  # fmt: skip
def test_which_reading_replaces_what_is_kept(kept, reading, follows, forgot):
    """Used, end and stamp of what is kept; used, end and the stamp before of what was read at 100."""
    held = kept and StoredCheckpoint("f", kept[0], kept[1], 50, kept[2])
    used, ends_us, before = reading
    read = CheckpointReading(StoredCheckpoint("f", used, ends_us, 90, 100), before)

    assert (read.follows(held), read.forgot(held)) == (follows, forgot)
