"""Reservations whose call got no reply: the request is denied, and what the store did reserve is given back."""

import asyncio
import time

import pytest

from enforcement import Denied, Limiter, aio
from enforcement.store_calls.reservations import open_reservations
from tests.enforcement.world import PROJECT, eventually, fixed

TPM = fixed(100_000, name="tpm", unit="tokens", on_store_failure="deny")


def records(world):
    return open_reservations(world.client, world.keys, PROJECT)


def executed(world):
    """Return how many calls of functions the store has executed."""
    return world.client.info("commandstats")["cmdstat_fcall"]["calls"]


def used_by_token(url, secret):
    with Limiter(url, timeout=1.0, lookup=1.0) as limiter:
        states = limiter.check(secret, {"requests": 0, "tokens": 0}).limits
    return [state.quota - state.remaining for state in states]


@pytest.fixture
def frozen(server):
    """Return a function that freezes the store for a moment. It executes what it got meanwhile afterwards."""
    yield server.freeze
    server.thaw()


def test_it_is_given_back_when_the_store_is_back(server, world, frozen):
    secret = world.everything(TPM)
    with Limiter(server.url, timeout=0.05, lookup=0.1) as limiter:
        limiter.settle(limiter.reserve(secret, costs={"tokens": 10}, life=60).id, {"tokens": 7})
        before = executed(world)
        frozen()
        with pytest.raises(Denied, match="cannot be checked"):
            limiter.reserve(secret, costs={"tokens": 600}, life=60)
        time.sleep(0.2)
        server.thaw()

        assert eventually(lambda: executed(world) > before)
        assert eventually(lambda: not records(world))
        assert used_by_token(server.url, secret) == [7]


async def test_so_is_that_of_a_metered_request(server, world, frozen):
    """With the request, which was not made."""
    secret = world.everything(TPM, fixed(100, name="rpm", on_store_failure="deny"))
    async with aio.Limiter(server.url, timeout=0.05, lookup=1.0) as limiter:
        plan = await limiter.find_plan(secret, None)
        await (await limiter.admit_plan(plan, {"tokens": 10}, None, {"model": "m"})).conclude({"tokens": 7})
        before = executed(world)
        frozen()
        waiting = [limiter.admit_plan(plan, {"tokens": 600}, None, {"model": "m"}) for _ in range(5)]
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(it) for it in refused] == [Denied] * 5
        server.thaw()

        assert await asyncio.to_thread(eventually, lambda: executed(world) >= before + 5)
        assert await asyncio.to_thread(eventually, lambda: not records(world))
        assert used_by_token(server.url, secret) == [7, 1]
