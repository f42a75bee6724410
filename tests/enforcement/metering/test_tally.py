"""What a metered door reports of its settlements: each once, by token and model, and only what is metered."""

import asyncio
import json
from collections import Counter

import pytest

from enforcement import aio
from enforcement.doors.asgi import LimitMiddleware
from enforcement.exporters.text import exposition
from enforcement.metering import tally
from enforcement.metering.samples import SAMPLE_COUNTS, SAMPLE_NAMES, SUMS
from enforcement.store_calls.reservations import open_reservations, settle_reservation
from tests.enforcement.doors.metered.budgets import HELLO, STREAM, TPM, USD, publish_metered, used
from tests.enforcement.doors.metered.provider import Provider, Visit, ask, whole
from tests.enforcement.world import PROJECT, eventually

SAMPLES = (*SAMPLE_NAMES, *SAMPLE_COUNTS, *SUMS)
NAMES = (*tally.ROW_NAMES, *tally.COUNT_NAMES)
TEXT = [{"type": "text", "text": "x" * 400}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}


@pytest.fixture
async def aio_limiter(server, world):
    aio_limiter = aio.Limiter(server.url, timeout=1.0, lookup=1.0, instance="proxy-1")
    yield aio_limiter
    await aio_limiter.close()


@pytest.fixture
def provider():
    return Provider()


@pytest.fixture
def door(aio_limiter, provider):
    return LimitMiddleware(provider, aio_limiter, metered=True)


@pytest.fixture
def delivered(world, aio_limiter):
    """End the limiter, and return the rows in the stream, the batches of which have no id twice."""

    async def read():
        await aio_limiter.close()
        entries = [fields for _, fields in world.client.xrange(world.keys.usage)]
        assert len({fields["id"] for fields in entries}) == len(entries)
        return [dict(zip(NAMES, row, strict=True)) for it in entries for row in json.loads(it.get("metered", "[]"))]

    return read


def samples(world):
    """Return the samples in the stream."""
    entries = [fields for _, fields in world.client.xrange(world.keys.usage)]
    return [dict(zip(SAMPLES, row, strict=True)) for it in entries for row in json.loads(it.get("samples", "[]"))]


async def test_a_row_says_how_requests_were_settled(world, door, provider, delivered):
    """Two reported, one refused by the provider before it cost anything."""
    secret = publish_metered(world, TPM, USD)
    await ask(door, secret, HELLO)
    await ask(door, secret, STREAM)
    provider.answer = lambda scope, body, receive, send: whole(send, {"error": {}}, 500)
    await ask(door, secret, HELLO)

    rows = await delivered()
    by_way = {row["settled_as"]: row for row in rows}
    assert set(by_way) == {"exact", "nothing"}
    sums = {name: sum(row[name] for row in rows if row["settled_as"] == "exact") for name in tally.COUNT_NAMES}
    assert sums == {
        "requests": 2,
        "input": 200,
        "cached_input": 0,
        "cache_write": 0,
        "output": 60,
        "micros": 440,
        "estimated_input": 200,
        "calls": 0,
    }
    exact = by_way["exact"]
    assert (exact["project"], exact["model"], exact["approximate"], exact["price_revision"]) == (PROJECT, "gpt-x", 0, 1)
    assert exact["token"].startswith("tok_")
    assert [by_way["nothing"][name] for name in ("requests", "output", "micros")] == [1, 0, 0]


@pytest.mark.parametrize("estimate", ["typical", "bound"])
async def test_a_sample_says_how_many_tokens_requests_have(world, door, provider, delivered, estimate):
    """Whatever was estimated. All input counts, also what the provider had in its cache."""
    provider.usage = {**provider.usage, "prompt_tokens_details": {"cached_tokens": 64}}
    secret = publish_metered(world, TPM, estimate=estimate, default_cap=30)
    await ask(door, secret, HELLO)
    await ask(door, secret, STREAM)

    rows = await delivered()
    (found,) = samples(world)
    # Both have 400 bytes of text, two or three objects, and 100 tokens, of which 100 are expected.
    assert [found[name] for name in SAMPLE_NAMES[1:]] == [PROJECT, rows[0]["token"], "gpt-x", "openai-chat", ""]
    assert [found[name] for name in SAMPLE_COUNTS] == [2, 0, 200, 0]
    assert found["bytes_bytes"] == 2 * 400 * 400 * 10
    assert found["bytes_tokens"] == 2 * 400 * 100 * 10
    assert (found["one_one"], found["one_tokens"], found["tools_tools"]) == (20, 2_000, 0)
    assert sum(row["cached_input"] for row in rows) == 128


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"messages": [{"role": "user", "content": [*TEXT, IMAGE]}]}, 200),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, {"role": "user", "content": TEXT}]}, 200),
        ({"messages": []}, 200),
        ({}, 500),
    ],
    ids=["an image", "kept by the provider", "no text", "refused"],
)
async def test_a_request_of_more_than_text_is_no_sample(world, door, provider, delivered, change, status):
    if status == 500:
        provider.answer = lambda scope, body, receive, send: whole(send, {"error": {}}, 500)
    secret = publish_metered(world, TPM)
    assert (await ask(door, secret, {**HELLO, **change})).status == status

    (row,) = await delivered()
    assert row["requests"] == 1
    assert samples(world) == []


async def test_an_answer_without_a_last_word_is_no_sample(world, door, provider, delivered):
    provider.answer = lambda scope, body, receive, send: whole(send, {"choices": [{"message": {"content": "hi"}}]})
    await ask(door, publish_metered(world, TPM), HELLO)

    (row,) = await delivered()
    assert row["settled_as"] == "observed"
    assert samples(world) == []


async def test_money_is_reported_also_where_no_limit_counts_it(world, aio_limiter, door, delivered):
    """As soon as the prices are loaded, for which such requests do not wait."""
    secret = publish_metered(world, TPM)
    await aio_limiter.find_prices()
    await ask(door, secret, HELLO)

    (row,) = await delivered()
    assert (row["input"], row["output"], row["micros"]) == (100, 30, 220)


async def test_money_is_approximate_also_where_no_limit_counts_it(world, aio_limiter, door, provider, delivered):
    """The price has no rate of its own for what the provider had in its cache."""
    provider.usage = {**provider.usage, "prompt_tokens_details": {"cached_tokens": 64}}
    secret = publish_metered(world, TPM)
    await aio_limiter.find_prices()
    await ask(door, secret, HELLO)

    (row,) = await delivered()
    assert (row["micros"], row["approximate"]) == (220, 1)


async def test_what_no_meter_reads_is_counted_as_such(world, door, provider, delivered):
    provider.answer = lambda scope, body, receive, send: whole(send, {})
    secret = publish_metered(world, {**TPM, "unmetered": "count_only"})
    await ask(door, secret, b"{", path="/v1/unknown")

    (row,) = await delivered()
    assert (row["settled_as"], row["model"], row["requests"], row["micros"]) == ("unmetered", "", 1, 0)


async def test_one_that_an_operator_has_settled_is_not_reported(world, aio_limiter, door, provider, delivered):
    """Neither its tokens nor the correction of its charges: those of the operator stand."""
    secret = publish_metered(world, TPM)
    provider.pause, provider.words = 0.02, 1_000
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.01)
    (row,) = open_reservations(world.client, world.keys, PROJECT)
    assert settle_reservation(world.client, world.keys, row.id, {"tokens": 7})
    visit.leave()
    await visit.task

    assert await used(aio_limiter, secret) == {"tpm": 7}
    assert await delivered() == []
    entries = [json.loads(fields["rows"]) for _, fields in world.client.xrange(world.keys.usage)]
    assert sum(row[9] for rows in entries for row in rows if row[4] == "tpm") == 600


async def test_a_process_that_meters_nothing_sends_no_more(world, server, delivered):
    """The door is not even told to count."""
    async with aio.Limiter(server.url, timeout=1.0, lookup=1.0) as aio_limiter:
        secret = world.everything(TPM)
        await aio_limiter.check(secret, {"tokens": 1})
        assert aio_limiter._engine.usage.metered is None

    assert await delivered() == []
    assert all("metered" not in fields for _, fields in world.client.xrange(world.keys.usage))


async def test_names_of_models_are_bounded(world, door, delivered, monkeypatch):
    """A client that makes up names gets one row for all that are too many, and none can spoil a batch."""
    monkeypatch.setattr(tally, "MAX_MODELS", 3)
    monkeypatch.setattr(tally, "MINUTES_PER_DAY", 10**12)  # the names are forgotten at the end of a day
    secret = publish_metered(world, TPM)
    for name in ("gpt-a", "gpt-\u2028", "gpt-" + "x" * 100, "gpt-c", "gpt-d", "gpt-a"):
        assert (await ask(door, secret, {**HELLO, "model": name})).status == 200

    rows = await delivered()
    counted = Counter()
    for row in rows:  # of each minute
        counted[row["model"]] += row["requests"]
    assert counted == {"gpt-a": 2, "gpt-?": 1, "gpt-" + "x" * 100: 1, "": 2}


async def test_few_settlements_wait_to_be_counted_and_none_of_a_long_body(
    world, door, aio_limiter, delivered, monkeypatch
):
    """Each that waits keeps its request."""
    monkeypatch.setattr(tally, "MAX_ADDED", 3)
    secret, counts = publish_metered(world, TPM), aio_limiter.metered_tally()
    settled, waiting = counts.settled, []
    counts.settled = lambda *what: waiting.append((settled(*what), len(counts._waiting))[1])
    for text in ("x", "x" * tally.MAX_BODY, "x", "x", "x", "x"):
        await ask(door, secret, {**HELLO, "messages": [{"role": "user", "content": text}]})

    assert sum(row["requests"] for row in await delivered()) == 6
    assert waiting == [1, 0, 1, 2, 0, 1]


async def test_rows_that_wait_are_bounded(world, door, aio_limiter, delivered, monkeypatch):
    monkeypatch.setattr(tally, "MAX_ROWS", 2)
    secret = publish_metered(world, TPM)
    async with asyncio.timeout(30):
        while await aio_limiter.find_prices() is None:  # those that come in between give their model another row
            pass
    counts = aio_limiter.metered_tally()
    counts.take = lambda at_most: []  # as while nothing can be delivered
    settled = counts.settled
    counts.settled = lambda subject, at_us, *rest: settled(subject, 0, *rest)  # a new minute has rows of its own
    for name in ("gpt-a", "gpt-b", "gpt-c", "gpt-b"):
        await ask(door, secret, {**HELLO, "model": name})

    assert (len(counts), counts.dropped) == (2, 1)
    assert aio_limiter.stats().metered_dropped == 1
    assert b"sluicegate_metered_dropped_total 1" in exposition(aio_limiter.stats())
    world.publish()  # acknowledged at once, by a heartbeat
    assert eventually(lambda: '"metered_dropped":1' in (world.client.get(world.keys.instance("proxy-1")) or ""))
    del counts.take
    assert {row["model"]: row["requests"] for row in await delivered()} == {"gpt-a": 1, "gpt-b": 2}
