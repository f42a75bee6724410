"""A provider that reports more than a bound has reserved, at the door."""

import json
import logging

import pytest

from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.exporters.text import exposition
from enforcement.logs import RateLimitedLogger
from enforcement.metering import broken
from enforcement.metering.broken import BROKEN_NAMES
from tests.enforcement.doors.metered.budgets import HELLO, STREAM, TPM, USD, publish_metered, records, used
from tests.enforcement.doors.metered.provider import ask
from tests.enforcement.world import PROJECT


@pytest.fixture
async def other(server):
    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as limiter:
        yield limiter


async def test_a_broken_bound_is_counted_and_the_next_request_reserves_more(
    world, aio_limiter, other, provider, door, caplog, monkeypatch
):
    """In its own process. It is charged all the same."""
    monkeypatch.setattr(broken, "_SAY", RateLimitedLogger(logging.getLogger("sluicegate.reservations")))
    secret = publish_metered(world, TPM, USD, estimate="bound")
    reserved = []
    usual = provider._stream

    async def look(receive, send, asked):
        reserved.append(records(world)[0].about["input"])
        await usual(receive, send, asked)

    provider._stream = look
    provider.usage = {"prompt_tokens": 3_000, "completion_tokens": 30, "total_tokens": 3_030}
    assert (await ask(door, secret, STREAM)).status == 200
    assert (await used(aio_limiter, secret))["tpm"] == 3_030
    assert (await ask(door, secret, STREAM)).status == 200
    elsewhere = LimitMiddleware(provider, other, metered=True)
    provider.usage["prompt_tokens"] = 100
    assert (await ask(elsewhere, secret, STREAM)).status == 200

    first, second, third = reserved
    assert (first, second) == (third, 3_000)
    assert first < 1_000
    assert aio_limiter.stats().broken_bounds == {("gpt-x", "openai-chat"): 1}
    assert other.stats().broken_bounds == {}
    assert (
        'sluicegate_bounds_broken_total{model="gpt-x",format="openai-chat"} 1'
        in exposition(aio_limiter.stats()).decode()
    )
    assert "A bound was broken: a request of openai-chat for 'gpt-x'" in caplog.text

    await aio_limiter.close()
    entries = [fields["broken"] for _, fields in world.client.xrange(world.keys.usage) if "broken" in fields]
    ((row,),) = map(json.loads, entries)
    found = dict(zip(BROKEN_NAMES, row, strict=True))
    assert found.pop("minute") > 0
    assert found == {
        "project": PROJECT,
        "model": "gpt-x",
        "format": "openai-chat",
        "pattern": "gpt-*",
        "requests": 1,
        "added": 3_000 - first,
    }


async def test_an_answer_far_above_its_bound_has_the_next_request_refused(world, provider, door):
    secret = publish_metered(world, USD, estimate="bound")
    provider.usage = {**provider.usage, "prompt_tokens": 90_000}
    assert (await ask(door, secret, HELLO)).status == 200

    refused = await ask(door, secret, HELLO)
    assert refused.status == 403
    assert b"adds more than 65,536 tokens to requests for 'gpt-*'" in refused.body
    assert len(provider.seen) == 1


async def test_usage_of_bounds_that_hold_is_as_it_was(world, aio_limiter, door):
    """Enforcers and control planes of other versions read each other's batches."""
    secret = publish_metered(world, TPM, estimate="bound")
    assert (await ask(door, secret, HELLO)).status == 200
    await aio_limiter.close()

    fields = [set(fields) for _, fields in world.client.xrange(world.keys.usage)]
    assert fields
    assert all("broken" not in names for names in fields)
