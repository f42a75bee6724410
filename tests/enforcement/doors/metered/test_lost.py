"""Reservations that were not prolonged in time. Only the last word of their provider still settles them."""

import asyncio

import pytest

from enforcement import Limiter
from enforcement.model.instants import time_reply_us
from enforcement.plan.records import RecordKeys, prolong
from enforcement.store_calls.reservations import settle_reservation
from tests.enforcement.doors.metered.budgets import SLOTS, STREAM, TPM, USD, publish_metered, records, used
from tests.enforcement.doors.metered.provider import USAGE, WORD, Visit, event
from tests.enforcement.faults import FaultyPath
from tests.enforcement.world import World, eventually


class HaltingProvider:
    """Streams a word, and the usage of the request when it may go on."""

    def __init__(self):
        self.goes_on = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": event(WORD), "more_body": True})
        waiting = {asyncio.ensure_future(receive()), asyncio.ensure_future(self.goes_on.wait())}
        _, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        if self.goes_on.is_set():
            last = event({"choices": [], "usage": USAGE}) + event(b"[DONE]")
            await send({"type": "http.response.body", "body": last})


@pytest.fixture
def provider():
    return HaltingProvider()


def lose(world, reservation=None, ago_us=0):
    """Let the life of a reservation, or the only one, end now, or have ended before, and return its keys."""
    where = RecordKeys.from_id(world.keys, (reservation or records(world)[0]).id)
    world.client.zadd(where.index, {where.ident: time_reply_us(world.client.time()) - ago_us})
    return where


async def streaming(door, secret):
    """Return a visit whose answer has begun."""
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    return visit


async def test_the_last_word_of_its_provider_settles_it(world, aio_limiter, door, provider):
    secret, rows = publish_metered(world, TPM, USD, SLOTS), aio_limiter.metered_tally()
    visit = await streaming(door, secret)
    lose(world)
    provider.goes_on.set()
    await visit.task

    assert await used(aio_limiter, secret) == {"tpm": 130, "usd": 220, "slots": 0}
    assert (records(world), len(rows.take(9))) == ([], 1)


async def test_what_was_observed_does_not(world, aio_limiter, door):
    """The charge stays when the client leaves, its slot is free, and an operator settles what is listed as lost."""
    secret, rows = publish_metered(world, TPM, SLOTS), aio_limiter.metered_tally()
    visit = await streaming(door, secret)
    where = lose(world)
    visit.leave()
    await visit.task

    assert await used(aio_limiter, secret) == {"tpm": 600, "slots": 0}
    assert ([row.lost for row in records(world)], rows.take(9)) == ([True], [])
    assert settle_reservation(world.client, world.keys, where.id, {"tokens": 150}) is not None
    assert await used(aio_limiter, secret) == {"tpm": 150, "slots": 0}


@pytest.mark.parametrize("listed", [True, False])
async def test_nothing_prolongs_it(world, aio_limiter, door, listed):
    """Also if it made room for others in the list, since a project has very many."""
    secret = publish_metered(world, TPM)
    visit = await streaming(door, secret)
    where = lose(world)
    if not listed:
        world.client.zrem(where.index, where.ident)
    assert world.client.execute_command(*prolong(where, 60.0, None)) == 0
    visit.leave()
    await visit.task
    assert await used(aio_limiter, secret) == {"tpm": 600}
    assert world.client.exists(where.record)


def test_what_reaches_the_store_later_must_have_been_open_before(own_server):
    """A settlement counts from the instant when its process made it. The slots are free in any case."""
    world = World(own_server.url)
    secret, path = publish_metered(world, TPM, SLOTS), FaultyPath(own_server.port)
    with Limiter(path.url, timeout=1.0, lookup=1.0) as cut_off, Limiter(own_server.url, timeout=1.0) as other:
        plan = cut_off.find_plan(secret, None)
        early, late = (cut_off.admit_plan(plan, {"tokens": 600}, None, {"model": "m"}) for _ in range(2))
        lose(world, late, 1_000_000)  # a process knows the time of the store only about
        path.mode = "deaf"
        for admission in (early, late):
            admission.conclude({"tokens": 150}, is_last_word=False)
        lose(world, early)
        path.mode = "pass"
        assert eventually(lambda: not cut_off._engine.fallback.owes(), 10.0)
        states = other.check(secret, {"tokens": 0, "requests": 0}).limits
        assert [state.quota - state.remaining for state in states] == [150 + 600, 0]
        assert [(row.id, row.lost) for row in records(world)] == [(late.id, True)]
    path.close()
