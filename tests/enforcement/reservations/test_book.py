"""Reservations that any process settles by their id, exactly once, whatever happens to the store meanwhile."""

import asyncio
import json
import os
import signal
import threading

import pytest

from enforcement import Denied, Limit, Limiter, StoreError, aio
from enforcement.model.keys import Keys
from enforcement.model.tokens import mint
from enforcement.plan.records import MAX_RESERVATIONS, RecordKeys, ReservationRecord
from enforcement.settings import Settings
from enforcement.store_calls.reservations import count_reservations
from tests.enforcement.faults import FaultyPath
from tests.enforcement.world import PROJECT, eventually, fixed

pytestmark = pytest.mark.usefixtures("documents")

TOKENS = Limit(name="tokens", quota=1_000, window_seconds=3_600, unit="tokens")
MONTH = Limit(name="month", quota=5_000, calendar="month", unit="tokens")
BUCKET = Limit(name="bucket", algorithm="token_bucket", quota=1_000, window_seconds=3_600_0, unit="tokens")
LOG = Limit(name="log", algorithm="sliding_log", quota=1_000, window_seconds=3_600, unit="tokens")
SLIDING = Limit(name="sliding", algorithm="sliding_window", quota=1_000, window_seconds=3_600, unit="tokens")
SLOTS = Limit(name="slots", algorithm="concurrency", quota=2, window_seconds=60)
ALL = [TOKENS, MONTH, BUCKET, LOG, SLIDING, SLOTS]


@pytest.fixture
def other(server, world):
    """Give a limiter of another instance."""
    with Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        yield limiter


def remaining(limiter, key, limits=ALL):
    return [state.remaining for state in limiter.peek(limits, key).limits]


def test_another_process_settles_what_this_one_has_reserved(limiter, other):
    """Each algorithm gets back what was not used, slots are freed, and a unit that is not named keeps its estimate."""
    reserved = limiter.reserve(ALL, "u", costs={"tokens": 400}, life=600)
    assert remaining(limiter, "u") == [600, 4_600, 600, 600, 600, 1]

    assert other.settle(reserved.id, {"tokens": 150}) is True
    assert remaining(limiter, "u") == [850, 4_850, 850, 850, 850, 2]


def test_a_settlement_above_the_estimate_is_charged(limiter, other):
    reserved = limiter.reserve(TOKENS, "debt", costs={"tokens": 900}, life=600)
    other.settle(reserved.id, {"tokens": 1_300})

    assert other.peek(TOKENS, "debt", {"tokens": 1}).remaining == 0
    assert not other.hit(TOKENS, "debt", {"tokens": 1})


def test_release_gives_everything_back(limiter, other):
    reserved = limiter.reserve(ALL, "back", costs={"tokens": 400}, life=600)

    assert other.release(reserved.id) is True
    assert remaining(limiter, "back") == [1_000, 5_000, 1_000, 1_000, 1_000, 2]


@pytest.mark.parametrize("first", ["settle", "release", "own"])
def test_only_the_first_settlement_counts(limiter, other, first):
    """Whoever makes it. The process that has reserved changes nothing either, once the record is gone."""
    reserved = limiter.reserve(ALL, first, costs={"tokens": 400}, life=600)
    done = {
        "settle": lambda: other.settle(reserved.id, {"tokens": 100}),
        "release": lambda: other.release(reserved.id),
        "own": lambda: reserved.conclude({"tokens": 100}),
    }
    done[first]()
    after = remaining(limiter, first)

    assert other.settle(reserved.id, {"tokens": 300}) is False
    assert other.release(reserved.id) is False
    reserved.settle({"tokens": 7})
    reserved.conclude({"tokens": 7})
    assert remaining(limiter, first) == after


def test_many_settle_at_once_and_one_of_them_counts(server, limiter):
    reserved = limiter.reserve(TOKENS, "race", costs={"tokens": 400}, life=600)
    outcomes = []

    def settle(cost):
        with Limiter(server.url, timeout=1.0, lookup=1.0) as mine:
            outcomes.append((mine.settle(reserved.id, {"tokens": cost}), cost))

    threads = [threading.Thread(target=settle, args=(cost,)) for cost in range(100, 108)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    counted = [cost for open_, cost in outcomes if open_]
    assert len(counted) == 1
    assert remaining(limiter, "race", TOKENS) == [1_000 - counted[0]]


async def test_the_asyncio_limiter_reserves_and_settles(server, limiter):
    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as mine:
        reserved = await mine.reserve(ALL, "aio", costs={"tokens": 400}, life=600)
        assert await mine.settle(reserved.id, {"tokens": 100}) is True
        assert await mine.release(reserved.id) is False
    assert remaining(limiter, "aio") == [900, 4_900, 900, 900, 900, 2]


async def test_a_cancelled_task_leaves_no_reservation(server, world, limiter):
    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as mine:
        for after in range(8):
            task = asyncio.ensure_future(mine.reserve(ALL, "gone", costs={"tokens": 400}, life=600))
            for _ in range(after):
                await asyncio.sleep(0)
            if not task.cancel():  # the store has answered before
                await mine.release(task.result().id)
                continue
            with pytest.raises(asyncio.CancelledError):
                await task
    assert remaining(limiter, "gone") == [1_000, 5_000, 1_000, 1_000, 1_000, 2]
    assert not world.client.keys("*:r:*")
    assert not world.client.keys("*:reservations")


def test_a_denied_reservation_leaves_nothing(world, limiter):
    with pytest.raises(Denied) as denied:
        limiter.reserve(ALL, "no", costs={"tokens": 1_001}, life=600)

    assert denied.value.decision.reason == "cost_exceeds_capacity"
    assert remaining(limiter, "no") == [1_000, 5_000, 1_000, 1_000, 1_000, 2]
    assert not world.client.keys("*:r:*")


def test_slots_are_held_for_the_life_of_the_reservation(world, limiter):
    """The job runs elsewhere, so nobody renews them."""
    reserved = limiter.reserve(SLOTS, "job", life=7_200)

    (key,) = [key for key in world.client.keys("*:c:*") if world.client.type(key) in ("zset", b"zset")]
    ((_, ends),) = world.client.zrange(key, 0, -1, withscores=True)
    seconds, micros = world.client.time()
    assert 7_100 < ends / 1e6 - seconds - micros / 1e6 <= 7_200
    limiter.release(reserved.id)
    assert remaining(limiter, "job", SLOTS) == [2]


def test_a_reservation_that_is_over_is_lost_and_can_still_be_settled(world, limiter, other):
    """Its charge stays until somebody who knows better settles it."""
    reserved = limiter.reserve([TOKENS, SLOTS], "lost", costs={"tokens": 400}, life=0.05)
    where = RecordKeys.from_id(Keys(), reserved.id)
    assert eventually(lambda: remaining(other, "lost", SLOTS) == [2] or None, 3.0)

    assert remaining(other, "lost", TOKENS) == [600]
    assert world.client.zscore(where.index, where.ident) is not None
    assert other.settle(reserved.id, {"tokens": 10}) is True
    assert remaining(other, "lost", TOKENS) == [990]


def test_a_record_says_whose_it_is(world, server):
    secret = world.everything(fixed(1_000, name="tpm", unit="tokens"))
    with Limiter(server.url, timeout=1.0, lookup=1.0, instance="proxy-1") as limiter:
        reserved = limiter.reserve(secret, costs={"tokens": 400}, life=600)
    where = RecordKeys.from_id(Keys(), reserved.id)
    record = ReservationRecord.read(world.client.get(where.record))

    assert reserved.id.startswith(f"{PROJECT}.")
    assert record.head["project"] == PROJECT
    assert record.head["token"].startswith("tok_")
    assert record.head["instance"] == "proxy-1"
    assert [(charge.bound.limit.name, charge.permits) for charge in record.charges] == [("tpm", 400)]


def test_usage_follows_a_settlement_by_another_process(world, server):
    """What is reported is what was used in the end."""
    secret = world.everything(fixed(1_000, name="tpm", unit="tokens"))
    with Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        reserved = limiter.reserve(secret, costs={"tokens": 400}, life=600)
    with Limiter(server.url, timeout=1.0, lookup=1.0) as other:
        other.settle(reserved.id, {"tokens": 150})

    rows = [row for _, fields in world.client.xrange(world.keys.usage) for row in json.loads(fields["rows"])]
    assert sum(row[-1] for row in rows if row[4] == "tpm") == 150


def test_overflow_counters_are_settled_where_they_were_charged(world, server):
    """A value beyond the project's cap shares a counter, and the record remembers which one it was."""
    limit = fixed(1_000, name="by-ip", unit="tokens", partition_by=["ip"])
    secret = world.everything(limit)
    world.publish(world.project(partition_cap=1))
    with Limiter(server.url, timeout=1.0, lookup=1.0) as limiter, Limiter(server.url, timeout=1.0, lookup=1.0) as other:
        limiter.check(secret, {"tokens": 1}, {"ip": "10.0.0.1"})
        reserved = limiter.reserve(secret, costs={"tokens": 400}, attributes={"ip": "10.0.0.2"}, life=600)
        state = limiter.check(secret, {"tokens": 0}, {"ip": "10.0.0.3"}).limits[0]
        assert (state.overflow, state.remaining) == (True, 600)
        other.settle(reserved.id, {"tokens": 100})
        assert limiter.check(secret, {"tokens": 0}, {"ip": "10.0.0.3"}).limits[0].remaining == 900


def test_a_token_without_limits_has_nothing_to_settle(world, server):
    secret = world.everything()
    with Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        assert limiter.reserve(secret, life=600).id == ""


@pytest.mark.parametrize(
    "life", [0, -1, 604_801, pytest.param(10**5_000, id="huge"), float("nan"), float("inf"), "60", True, None]
)
def test_a_life_that_is_none_is_refused(limiter, life):
    with pytest.raises(ValueError, match="life: must be a number of seconds above 0 and at most 604800"):
        limiter.reserve(TOKENS, "life", costs={"tokens": 1}, life=life)
    assert remaining(limiter, "life", TOKENS) == [1_000]


def test_a_life_below_a_microsecond_is_one(limiter, other):
    """The reservation is lost at once, and can be settled as any other."""
    reserved = limiter.reserve(TOKENS, "short", costs={"tokens": 400}, life=1e-9)

    assert other.settle(reserved.id, {"tokens": 100}) is True


@pytest.mark.parametrize(
    "bad", ["", "x", "global", "a.b", "global." + "g" * 32, "{x}." + "0" * 32, None, 7, "é." + "0" * 32]
)
def test_an_id_that_is_none_is_refused(limiter, bad):
    with pytest.raises(ValueError, match="id: must be the id of a reservation"):
        limiter.settle(bad, 1)
    with pytest.raises(ValueError, match="id: must be the id of a reservation"):
        limiter.release(bad)


@pytest.mark.parametrize("costs", [-1, 1.5, True, 5, {}, {"token": 5}, {"tokens": -1}, {"T": 1}, {"tokens": None}])
def test_costs_that_are_none_leave_the_reservation_open(limiter, costs):
    reserved = limiter.reserve(TOKENS, "bad", costs={"tokens": 400}, life=600)
    with pytest.raises(ValueError, match="costs"):
        limiter.settle(reserved.id, costs)
    assert limiter.settle(reserved.id, {"tokens": 0}) is True


def test_a_record_that_cannot_be_read_is_an_error_and_stays(world, limiter):
    reserved = limiter.reserve(TOKENS, "broken", costs={"tokens": 400}, life=600)
    where = RecordKeys.from_id(Keys(), reserved.id)
    for text in ["", "1||\n", "1|1|\n{}", "x|1|\n{}", "1|1|\n[]", "1|1|\n" + '{"v":2,"costs":[1],"limits":[]}']:
        world.client.set(where.record, text)
        with pytest.raises(StoreError, match="a reservation cannot be read"):
            limiter.settle(reserved.id, {"tokens": 1})
        assert world.client.get(where.record) is not None


def test_too_many_open_reservations_are_refused(world, limiter):
    """Before anything is charged. Lost ones make room, and can still be settled."""
    kept = limiter.reserve(TOKENS, "many", costs={"tokens": 1}, life=600)
    where = RecordKeys.from_id(Keys(), kept.id)
    seconds, _ = world.client.time()
    world.client.zadd(where.index, {f"{n:032x}": (seconds + 600) * 1e6 for n in range(MAX_RESERVATIONS - 1)})

    with pytest.raises(Denied) as denied:
        limiter.reserve(TOKENS, "many", costs={"tokens": 1}, life=600)
    assert denied.value.decision.reason == "too_many_reservations"
    assert denied.value.decision.status == 429
    assert denied.value.decision.headers()["Retry-After"] == "1"
    assert remaining(limiter, "many", TOKENS) == [999]

    world.client.zadd(where.index, {f"{n:032x}": (seconds - 600) * 1e6 for n in range(3)})
    limiter.reserve(TOKENS, "many", costs={"tokens": 1}, life=600)
    assert world.client.zcard(where.index) == MAX_RESERVATIONS - 2
    assert limiter.settle(kept.id, {"tokens": 0}) is True


def two_tokens(world):
    secrets = [mint("live") for _ in range(2)]
    documents = {**world.policy("api", fixed(100_000)), **world.project()}
    world.publish(documents, {secret: world.token("pol_api") for secret in secrets})
    return secrets


def fill(world, where, count, seconds):
    """Give a token so many more reservations, which end in some seconds."""
    (own,) = (key for key in world.client.scan_iter(f"{where.index}:*"))
    ends_us = (world.client.time()[0] + seconds) * 1_000_000
    ids = {f"{n:032x}": ends_us for n in range(count)}
    world.client.zadd(own, ids)
    world.client.zadd(where.index, ids)
    return own


@pytest.mark.parametrize("share", [None, 1])
def test_one_token_has_at_most_half_of_the_reservations_of_its_project(world, make_limiter, server, monkeypatch, share):
    """The denial names the rule, nothing is charged, and others go on. The share is a setting."""
    if share:
        monkeypatch.setenv("SLUICEGATE_RESERVATION_SHARE", str(share))
    hers, his = two_tokens(world)
    limiter = world.follow(make_limiter(server.url))
    most = MAX_RESERVATIONS * (share or 50) // 100
    kept = limiter.reserve(hers, life=600)
    where = RecordKeys.from_id(Keys(), kept.id)
    fill(world, where, most - 2, 600)
    last = limiter.reserve(hers, life=600)
    left = limiter.check(hers).limits[0].remaining

    with pytest.raises(Denied) as denied:
        limiter.reserve(hers, life=600)
    assert (denied.value.decision.reason, denied.value.decision.status) == ("too_many_of_token", 429)
    assert denied.value.decision.headers()["Retry-After"] == "1"
    assert "Too many reservations of the token are open" in str(denied.value.decision.problem())
    assert limiter.check(hers).limits[0].remaining == left - 1
    assert limiter.reserve(his, life=600)
    counts = count_reservations(world.client, Keys(), [PROJECT])[PROJECT]
    assert (counts.open, counts.of_token) == (most + 1, most)

    limiter.settle(last.id, 1)
    assert limiter.reserve(hers, life=600)


def test_what_is_lost_or_settled_by_others_makes_room_and_what_was_prolonged_does_not(world, limiter):
    """The index of a token is brought up to date when it is full, some of it in each call."""
    secret, _ = two_tokens(world)
    kept = limiter.reserve(secret, life=600)
    where = RecordKeys.from_id(Keys(), kept.id)
    own = fill(world, where, MAX_RESERVATIONS // 2 - 1, -600)
    prolonged = f"{0:032x}"
    world.client.zadd(where.index, {prolonged: (world.client.time()[0] + 600) * 1_000_000})

    assert limiter.reserve(secret, life=600)
    assert world.client.zcard(own) == MAX_RESERVATIONS // 2 - 99 + 1
    assert world.client.zscore(own, prolonged) == world.client.zscore(where.index, prolonged)


def test_limits_in_code_have_no_token(world, limiter):
    reserved = limiter.reserve(TOKENS, "code", costs={"tokens": 1}, life=600)
    index = RecordKeys.from_id(Keys(), reserved.id).index
    assert list(world.client.scan_iter(f"{index}*")) == [index]


@pytest.mark.parametrize("wrong", ["0", "101", "half", "-1", "1.5"])
def test_a_share_that_is_no_percentage_is_refused(wrong):
    with pytest.raises(ValueError, match="SLUICEGATE_RESERVATION_SHARE: must be an integer from 1 to 100"):
        Settings.from_env({"SLUICEGATE_RESERVATION_SHARE": wrong})


@pytest.mark.parametrize("wrong", [0, 101, -1, 1.5, True, "50"])
def test_a_share_in_code_that_is_no_percentage_is_refused(wrong):
    with pytest.raises(ValueError, match="reservation_share: must be an integer from 1 to 100"):
        Settings(reservation_share=wrong)


def test_nothing_is_reserved_while_the_store_is_away(own_server):
    """Nobody could settle it. A request that only needs a decision is decided all the same."""
    with Limiter(own_server.url, lookup=1.0) as limiter:
        limiter.hit(TOKENS, "away", {"tokens": 1})
        own_server.kill()
        for _ in range(20):
            with pytest.raises(Denied) as denied:
                limiter.reserve(TOKENS, "away", costs={"tokens": 100}, life=600)
            assert denied.value.decision.reason == "degraded_denied"
        assert limiter.hit(TOKENS, "away", {"tokens": 500})
        with pytest.raises(StoreError):
            limiter.settle(f"{'0' * 22}.{'0' * 32}", {"tokens": 1})


def test_a_settlement_in_an_outage_reaches_the_store_once(own_server):
    """The process remembers it. The record is removed with it, so nobody can settle the reservation again."""
    with Limiter(own_server.url, lookup=1.0) as limiter:
        reserved = limiter.reserve([TOKENS, SLOTS], "outage", costs={"tokens": 400}, life=600)
        own_server.freeze()
        for _ in range(10):
            limiter.hit(TOKENS, "other", {"tokens": 1})
        reserved.conclude({"tokens": 150})
        own_server.thaw()
        with Limiter(own_server.url, lookup=1.0) as other:
            assert eventually(lambda: remaining(other, "outage", [TOKENS, SLOTS]) == [850, 2], 10.0)
            assert other.settle(reserved.id, {"tokens": 1}) is False
            assert remaining(other, "outage", [TOKENS, SLOTS]) == [850, 2]


def test_a_settlement_in_an_outage_comes_after_that_of_an_operator(own_server):
    """Whoever reaches the store first has settled it."""
    with Limiter(own_server.url, lookup=1.0) as limiter, Limiter(own_server.url, lookup=1.0) as operator:
        path = FaultyPath(own_server.port)
        with Limiter(path.url, lookup=1.0) as cut_off:
            reserved = cut_off.reserve(TOKENS, "late", costs={"tokens": 400}, life=600)
            path.mode = "deaf"
            for _ in range(10):
                cut_off.hit(TOKENS, "other", {"tokens": 1})
            reserved.conclude({"tokens": 150})
            assert operator.settle(reserved.id, {"tokens": 300}) is True
            path.mode = "pass"
            assert eventually(lambda: not cut_off._engine.fallback.owes(), 10.0)
        path.close()
        assert remaining(limiter, "late", TOKENS) == [700]


@pytest.mark.parametrize("verb", [b"conclude", b"settle"])
def test_a_settlement_whose_reply_was_lost_counts_once(own_server, verb):
    path = FaultyPath(own_server.port)
    with Limiter(path.url, lookup=1.0) as limiter, Limiter(own_server.url, lookup=1.0) as other:
        reserved = limiter.reserve(TOKENS, "reply", costs={"tokens": 400}, life=600)
        path.only, path.mode = b"conclude", "swallow"
        if verb == b"conclude":
            reserved.conclude({"tokens": 150})
        else:
            with pytest.raises(StoreError):
                limiter.settle(reserved.id, {"tokens": 150})
        path.mode = "pass"
        assert eventually(lambda: not limiter._engine.fallback.owes(), 10.0)
        assert remaining(other, "reply", TOKENS) == [850]
        assert other.settle(reserved.id, {"tokens": 1}) is False
    path.close()


def test_a_killed_process_leaves_a_reservation_that_can_be_settled(server, world, limiter):
    """With its slots and its charge, and listed among the open ones of its project until then."""
    secret = world.everything(fixed(1_000, name="tpm", unit="tokens"))
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        mine = Limiter(server.url, timeout=1.0, lookup=1.0)
        os.write(writing, mine.reserve(secret, costs={"tokens": 400}, life=600).id.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    reserved = os.read(reading, 100).decode()

    assert limiter.check(secret, {"tokens": 0}).limits[0].remaining == 600
    assert limiter.settle(reserved, {"tokens": 50}) is True
    assert limiter.check(secret, {"tokens": 0}).limits[0].remaining == 950


def test_slots_beside_a_limit_of_each_value(world, server):
    """The value is registered with the charge, and the slot lives as long as the reservation."""
    slots = {"name": "slots", "algorithm": "concurrency", "quota": 4, "window_seconds": 60}
    secret = world.everything(fixed(9, name="user", partition_by=["user"]), slots)
    user = {"user": "ann"}

    with Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        made = limiter.reserve(secret, costs=3, attributes=user, life=3_600)
        assert [state.remaining for state in limiter.check(secret, 0, user).limits] == [6, 1]
        assert limiter.release(made.id)
        assert [state.remaining for state in limiter.check(secret, 0, user).limits] == [9, 4]
