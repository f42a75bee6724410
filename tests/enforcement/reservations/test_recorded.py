"""Records of running requests: prolonged while their process lives, listed for operators, and gone with the request."""

import asyncio
import os
import signal
from contextlib import ExitStack

import pytest

from enforcement import Denied, Limiter, StoreError, aio
from enforcement.model.keys import Keys
from enforcement.reservations import book
from enforcement.store_calls.reservations import Amount, count_reservations, open_reservations, settle_reservation
from tests.enforcement.clustered import spread
from tests.enforcement.world import PROJECT, World, eventually, fixed

KEYS = Keys()
TPM = fixed(1_000, name="tpm", unit="tokens")
SLOTS = {"name": "slots", "algorithm": "concurrency", "quota": 4, "window_seconds": 60}


@pytest.fixture
def limiter(make_limiter, server, world):
    return make_limiter(server.url, instance="proxy-1")  # starts once documents are published


def admitted(limiter, secret, cost, **about):
    """Admit a request as a proxy does, which settles it when it has ended."""
    return limiter.admit_plan(limiter.find_plan(secret, None), {"tokens": cost}, None, about)


def listed(world, **only):
    return open_reservations(world.client, KEYS, PROJECT, **only)


def test_an_operator_sees_what_runs_and_what_it_holds(world, limiter):
    secret = world.everything(TPM, SLOTS)
    first, second = admitted(limiter, secret, 100, model="gpt-x"), admitted(limiter, secret, 200)

    shown = {row.id: row for row in listed(world)}
    assert set(shown) == {first.id, second.id}
    row = shown[first.id]
    assert (row.lost, row.token[:4], row.instance, row.about["model"]) == (False, "tok_", "proxy-1", "gpt-x")
    assert row.amounts == (Amount("api", "tpm", "tokens", 100), Amount("api", "slots", "requests", 1))
    assert 59_000_000 < row.expires_at_us - row.at_us <= 60_000_000
    assert listed(world, lost_only=True) == []

    first.conclude({"tokens": 50})
    second.cancel()
    assert listed(world) == []
    assert [s.remaining for s in limiter.check(secret, {"tokens": 0, "requests": 0}).limits] == [950, 4]


@pytest.mark.parametrize("ends", ["settle", "finish", "finish-none", "charge_for"])
def test_however_a_request_ends_its_record_goes(world, limiter, ends):
    secret = world.everything(TPM)
    admission = admitted(limiter, secret, 100)
    done = {
        "settle": lambda: admission.settle({"tokens": 0}),
        "finish": lambda: admission.finish(200),
        "finish-none": lambda: admission.finish(None),
        "charge_for": lambda: admission.charge_for(500),
    }
    done[ends]()
    assert listed(world) == []


@pytest.mark.parametrize("about", [None, {}], ids=["no record", "record"])
@pytest.mark.parametrize("ends", ["conclude", "settle then free", "free then conclude", "finish"])
def test_however_a_request_ends_its_slots_are_let_go(world, limiter, about, ends):
    """Also by the thread that renews them. What it kept would fill the memory, and count as held in an outage."""
    secret = world.everything(TPM, SLOTS)
    plan = limiter.find_plan(secret, None)
    admission = limiter.admit_plan(plan, {"tokens": 100}, None, about)
    slots, key = limiter._engine.slots, plan.bounds[1].key
    assert slots.held(key) == {admission.reservation.ident: 1}

    done = {
        "conclude": [lambda: admission.conclude({"tokens": 30})],
        "settle then free": [lambda: admission.settle({"tokens": 30}), admission.free_slots],
        "free then conclude": [admission.free_slots, lambda: admission.conclude({"tokens": 30})],
        "finish": [lambda: admission.finish(200)],
    }
    for end in done[ends]:
        end()
    assert (slots.held(key), slots._held, slots._open) == ({}, {}, {})


def test_a_client_that_leaves_frees_its_slot_and_the_record_stays(world, limiter):
    """The answer is read on, and is charged when it has ended."""
    secret = world.everything(TPM, SLOTS)
    admission = admitted(limiter, secret, 100)
    admission.free_slots()

    assert limiter.check(secret, {"tokens": 0, "requests": 0}).limits[1].remaining == 4
    assert [row.id for row in listed(world)] == [admission.id]
    admission.settle({"tokens": 30})
    assert listed(world) == []
    assert limiter.check(secret, {"tokens": 0}).limits[0].remaining == 970


def test_a_record_is_prolonged_while_its_process_lives(world, server, monkeypatch):
    """Also after its slot was freed, and no longer than until it is settled."""
    monkeypatch.setattr(book, "PROLONGED_SECONDS", 0.6)
    secret = world.everything(TPM, SLOTS)
    with Limiter(server.url, timeout=1.0) as limiter:
        admission = admitted(limiter, secret, 100)
        admission.free_slots()
        (first,) = listed(world)
        assert eventually(lambda: listed(world)[0].expires_at_us > first.expires_at_us + 1_000_000)
        assert not listed(world)[0].lost
        admission.settle({"tokens": 30})
        assert not limiter._engine.slots._open


def test_the_reservation_of_a_killed_process_is_lost_and_settled_by_hand(world, server, limiter, monkeypatch):
    monkeypatch.setattr(book, "PROLONGED_SECONDS", 0.3)
    secret = world.everything(TPM, SLOTS)
    child = os.fork()
    if not child:
        admitted(Limiter(server.url, timeout=1.0, instance="killed"), secret, 400)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

    assert eventually(lambda: listed(world, lost_only=True))
    (row,) = listed(world)
    assert (row.lost, row.instance) == (True, "killed")
    settled = settle_reservation(world.client, KEYS, row.id, {"tokens": 150})
    assert [(charge.bound.limit.name, delta) for charge, delta in settled.charged()] == [("tpm", -250), ("slots", -1)]
    assert settle_reservation(world.client, KEYS, row.id, None) is None
    assert [s.remaining for s in limiter.check(secret, {"tokens": 0, "requests": 0}).limits] == [850, 4]


def test_an_operator_gives_a_reservation_back(world, limiter):
    """What its process settles later changes nothing."""
    secret = world.everything(TPM)
    admission = admitted(limiter, secret, 400)
    assert settle_reservation(world.client, KEYS, admission.id, None) is not None
    admission.conclude({"tokens": 300})
    assert limiter.check(secret, {"tokens": 0}).limits[0].remaining == 1_000


def test_a_plain_request_writes_no_record(world, limiter):
    secret = world.everything(TPM, SLOTS)
    with limiter.admit(secret, costs={"tokens": 10}) as admission:
        limiter.check(secret, {"tokens": 1, "requests": 0})
        assert admission.id == ""
        names = [str(key) for key in world.client.keys("*")]
        assert not [name for name in names if "reservations" in name or ":r:" in name]


def test_on_a_cluster_the_record_lies_with_its_project(cluster):
    """The global counters lie in another slot. They are settled with it, and their denial leaves no record."""
    with ExitStack() as stack:
        world = World(cluster.url)
        everyone = fixed(1_000, name="all", unit="tokens")
        secret = spread(world, everyone=[everyone], project=[fixed(10_000, name="own", unit="tokens")])[0]
        limiter = stack.enter_context(Limiter(cluster.url, timeout=1.0, lookup=1.0))
        other = stack.enter_context(Limiter(cluster.url, timeout=1.0, lookup=1.0))

        def left():
            return {s.name: s.remaining for s in other.check(secret, {"tokens": 0}).limits}

        admission = admitted(limiter, secret, 400)
        assert admission.id.startswith("proj_0.")
        assert left() == {"all": 600, "own": 9_600}
        admission.conclude({"tokens": 100})
        assert left() == {"all": 900, "own": 9_900}

        assert limiter.settle(admission.id, {"tokens": 0}) is False
        reserved = limiter.reserve(secret, costs={"tokens": 400}, life=60)
        assert other.settle(reserved.id, {"tokens": 100}) is True
        assert left()["own"] == 9_800
        with pytest.raises(Exception, match="all"):
            limiter.reserve(secret, costs={"tokens": 900}, life=60)
        assert left()["own"] == 9_800
        assert not open_reservations(world.client, KEYS, "proj_0")


def test_on_a_cluster_only_one_of_two_slots_may_have_a_charge_to_correct(cluster):
    """Each gets its part by a call of its own. The record goes in any case, even if what is beside it cost nothing."""
    with ExitStack() as stack:
        world = World(cluster.url)
        everyone = fixed(1_000, name="all", unit="tokens")
        secret = spread(world, everyone=[everyone], project=[fixed(9, name="own")])[0]
        limiter = stack.enter_context(Limiter(cluster.url, timeout=1.0, lookup=1.0))

        admitted(limiter, secret, 400).conclude({"tokens": 100})  # the project's keeps its charge
        admitted(limiter, secret, 400).conclude({"tokens": 400, "requests": 0})  # that of everyone does
        with pytest.raises(Denied, match="all"):
            limiter.admit_plan(limiter.find_plan(secret, None), {"tokens": 5_000, "requests": 0}, None, {})

        states = limiter.check(secret, {"tokens": 0, "requests": 0}).limits
        assert {state.name: state.remaining for state in states} == {"own": 8, "all": 500}
        assert limiter.stats().store_failures == {}
        assert not open_reservations(world.client, KEYS, "proj_0")


async def test_tasks_record_and_settle_on_a_cluster_too(cluster):
    """Its connections answer in another way than that to a single server."""
    world = World(cluster.url)
    everyone = fixed(1_000, name="all", unit="tokens")
    secret = spread(world, everyone=[everyone], project=[fixed(10_000, name="own", unit="tokens")])[0]
    async with aio.Limiter(cluster.url, timeout=1.0, lookup=1.0) as limiter:
        plan = await limiter.find_plan(secret, None)
        admission = await limiter.admit_plan(plan, {"tokens": 400}, None, {})
        assert admission.id.startswith("proj_0.")
        await admission.conclude({"tokens": 100})
        states = (await limiter.check(secret, {"tokens": 0})).limits

    assert {state.name: state.remaining for state in states} == {"all": 900, "own": 9_900}
    assert not open_reservations(world.client, KEYS, "proj_0")


async def test_a_task_that_is_cancelled_while_it_settles_has_settled(server, world):
    """Whenever that happens, and it ends as cancelled all the same."""
    secret = world.everything(TPM)
    cancelled = 0
    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        plan = await limiter.find_plan(secret, None)
        for after in range(1, 8):
            admission = await limiter.admit_plan(plan, {"tokens": 100}, None, {})
            task = asyncio.ensure_future(admission.conclude({"tokens": 10}))
            for _ in range(after):
                await asyncio.sleep(0)
            cancelled += task.cancel()
            await asyncio.wait({task})
        (state,) = (await limiter.check(secret, {"tokens": 0})).limits

    assert cancelled > 0
    assert state.remaining == 1_000 - 7 * 10
    assert not listed(world)


async def test_settlements_that_wait_at_the_same_time_share_one_round_trip(server, world):
    """The store reads once from the connection, however many there are, and not once for each."""
    secret = world.everything(TPM)

    def reads():
        return world.client.info("stats")["total_reads_processed"]

    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        plan = await limiter.find_plan(secret, None)
        held = [await limiter.admit_plan(plan, {"tokens": 50}, None, {}) for _ in range(12)]
        before = reads()
        await asyncio.gather(*(admission.conclude({"tokens": 10}) for admission in held))
        counted = reads() - before - 1  # without the question itself
        (state,) = (await limiter.check(secret, {"tokens": 0})).limits

    # The background may have asked something meanwhile.
    assert 1 <= counted <= 3
    assert state.remaining == 1_000 - 12 * 10


def test_a_record_with_counters_of_others_is_not_settled(world, limiter):
    """Whoever may write records of one project would have an account of all projects charge another one."""
    secret = world.everything(TPM)
    made = admitted(limiter, secret, 100)
    key = KEYS.reservation(PROJECT, made.id.partition(".")[2])
    forged = world.client.get(key).replace(f"sg:{{{PROJECT}}}:c:", "sg:{proj_2}:c:")
    world.client.set(key, forged)

    assert listed(world) == []
    with pytest.raises(StoreError, match="counters of another project"):
        settle_reservation(world.client, KEYS, made.id, {"tokens": 900})
    assert not list(world.client.scan_iter("sg:{proj_2}*"))


@pytest.mark.parametrize("score", ["inf", "-inf", "9e18"])
def test_what_is_no_instant_hides_no_other(world, limiter, score):
    """Nor does a key of another type in another project."""
    secret = world.everything(TPM)
    made = admitted(limiter, secret, 100)
    world.client.zadd(KEYS.reservations(PROJECT), {"r" * 22: score})
    world.client.set(KEYS.reservations("proj_2"), "x")

    assert [row.id for row in listed(world)] == [made.id]
    assert list(count_reservations(world.client, KEYS, ["proj_2", PROJECT])) == [PROJECT]
