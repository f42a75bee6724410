"""The end of an admission: charged for the status, slots freed, once, whatever happens."""

import asyncio

import pytest

from enforcement import Limit, Limiter, aio
from tests.enforcement.world import eventually

SLOTS = Limit(name="slots", algorithm="concurrency", quota=4, window_seconds=600)
FIVE = Limit(name="five", quota=5, window_seconds=3_600, charge_on=["2xx"])
BOTH = [SLOTS, FIVE]


@pytest.fixture
def limiter(make_limiter, path):
    """Give a limiter on that way."""
    return make_limiter(path.url, timeout=0.1)


@pytest.fixture
async def aio_limiter(path):
    """Give an asyncio limiter on that way."""
    limiter = aio.Limiter(path.url, timeout=1.0)
    yield limiter
    await limiter.close()


def remaining_of(limiter, key):
    return [state.remaining for state in limiter.peek(BOTH, key).limits]


async def left_aio(limiter, key):
    return [state.remaining for state in (await limiter.peek(BOTH, key)).limits]


@pytest.mark.parametrize(("status", "remaining"), [(200, 3), (204, 3), (500, 5), (None, 5)])
def test_finish_charges_for_the_status_and_frees_the_slots(limiter, status, remaining):
    """None stands for a request without a response, which costs nothing."""
    admission = limiter.open_admission(BOTH, f"status-{status}", costs=2)
    admission.finish(status)

    assert remaining_of(limiter, f"status-{status}") == [4, remaining]


@pytest.mark.parametrize(("first", "second", "remaining"), [(200, None, 4), (None, 200, 5), (500, 200, 5)])
def test_a_second_finish_changes_nothing(limiter, first, second, remaining):
    """Neither the charge, nor slots that somebody else has taken since."""
    key = f"twice-{first}"
    limiter.open_admission(BOTH, key).finish(500)
    admission = limiter.open_admission(BOTH, key)
    admission.finish(first)
    other = limiter.open_admission(SLOTS, key, costs=4)
    admission.finish(second)
    admission.cancel()

    assert remaining_of(limiter, key) == [0, remaining]
    other.finish(200)


def test_finish_keeps_what_was_settled(limiter):
    """The status does not count then; the slots are freed."""
    admission = limiter.open_admission(BOTH, "settled", costs=4)
    admission.settle(1)
    admission.finish(500)

    assert remaining_of(limiter, "settled") == [4, 4]


def test_free_slots_leaves_the_charge_to_settle(limiter):
    """Whoever was served may still be counting."""
    admission = limiter.open_admission(BOTH, "freed", costs=4)
    admission.free_slots()
    assert remaining_of(limiter, "freed") == [4, 1]
    admission.finish(503)

    assert remaining_of(limiter, "freed") == [4, 5]


@pytest.mark.parametrize("status", [200, 500, None])
def test_finish_raises_nothing_while_the_store_is_away(limiter, path, server, status):
    """The slot and the correction are owed to the store, which gets them when it is back."""
    key = f"away-{status}"
    admission = limiter.open_admission(BOTH, key)
    path.mode = "deaf"
    admission.finish(status)
    assert path.hit
    path.mode = "pass"

    with Limiter(server.url, timeout=1.0) as other:
        assert eventually(lambda: remaining_of(other, key) == [4, 4 if status == 200 else 5])


async def test_finish_is_awaited_likewise(aio_limiter):
    """Two at once end the same admission, and both return when it has ended."""
    admission = await aio_limiter.open_admission(BOTH, "likewise")
    await asyncio.gather(admission.finish(500), admission.finish(200))
    assert await left_aio(aio_limiter, "likewise") == [4, 5]

    other = await aio_limiter.open_admission(SLOTS, "likewise", costs=4)
    await admission.finish(None)
    assert await left_aio(aio_limiter, "likewise") == [0, 5]
    await other.finish(None)


async def test_finish_raises_nothing_while_the_store_is_away_from_tasks(path, server):
    """As in threads."""
    limiter = aio.Limiter(path.url, timeout=0.1)
    admission = await limiter.open_admission(BOTH, "away")
    path.mode = "deaf"
    await admission.finish(500)
    assert path.hit
    path.mode = "pass"

    with Limiter(server.url, timeout=1.0) as other:
        assert await asyncio.to_thread(eventually, lambda: remaining_of(other, "away") == [4, 5])
    await limiter.close()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_finish_survives_the_cancellation_of_its_task(aio_limiter, path, times):
    """Also one that is repeated at every turn of the loop, as anyio does it."""
    key = f"cancelled-{times}"
    admission = await aio_limiter.open_admission(BOTH, key)
    path.delay, path.mode = 0.05, "delay"

    async def end() -> None:
        try:
            await admission.finish(500)
        finally:
            await admission.finish(200)

    task = asyncio.create_task(end())
    await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await admission.finish(200)  # returns when the work of the first call is done
    path.mode = "pass"

    assert path.hit
    assert await left_aio(aio_limiter, key) == [4, 5]


def test_a_second_finish_does_not_wait_for_the_store(limiter, path):
    """What has ended needs nothing more from it."""
    admission = limiter.open_admission(BOTH, "at-once")
    admission.finish(500)
    path.mode = "deaf"
    admission.finish(200)
    admission.free_slots()

    assert not path.hit


INPUT = Limit(name="input", quota=5_000, window_seconds=3_600, unit="tokens")


@pytest.mark.parametrize("make", ["admit", "reserve"])
def test_the_costs_are_those_of_the_call_whatever_becomes_of_the_mapping(server, make):
    """The estimate is what was charged, also if the caller writes the real cost into the same dictionary."""
    with Limiter(server.url, timeout=1.0) as limiter:
        costs, key = {"tokens": 4_000}, f"same-{make}"
        life = {"life": 60.0} if make == "reserve" else {}
        admission = (limiter.reserve if life else limiter.open_admission)(INPUT, key, costs, **life)
        costs["tokens"] = 713
        admission.settle(costs)
        admission.finish(200)
        assert limiter.peek(INPUT, key).remaining == 5_000 - 713

        costs["tokens"] = 4_500
        assert not limiter.hit(INPUT, key, costs)
        costs["tokens"] = 4_000  # fits, and was not what was denied
        assert limiter.hit(INPUT, key, costs).allowed


async def test_the_costs_of_tasks_are_those_of_the_call(server):
    """The same for asyncio, also if the mapping changes before the reply."""
    async with aio.Limiter(server.url, timeout=1.0) as limiter:
        costs = {"tokens": 4_000}
        opening = asyncio.ensure_future(limiter.open_admission(INPUT, "same-aio", costs))
        await asyncio.sleep(0)
        costs["tokens"] = 713
        await (await opening).settle(costs)
        assert (await limiter.peek(INPUT, "same-aio")).remaining == 5_000 - 713
