"""What other gateways get wrong about budgets, as their users report it. Here each is charged as it should be."""

import asyncio

import pytest

from enforcement import Limiter, aio
from enforcement.metering.tally import COUNT_NAMES, ROW_NAMES
from tests.enforcement.doors.metered.budgets import HELLO, STREAM, TPM, USD, publish_metered, records, used
from tests.enforcement.doors.metered.provider import Visit, ask, event, whole
from tests.enforcement.world import eventually, fixed

RATES = {"input": 1_000_000, "cached_input": 100_000, "output": 4_000_000}
PRICE = {"model": "gpt-*", **RATES}
OUTPUT = fixed(10**6, name="out", unit="output_tokens")


@pytest.fixture
async def aio_limiter(server, world):
    aio_limiter = aio.Limiter(server.url, timeout=0.3, lookup=1.0)
    yield aio_limiter
    await aio_limiter.close()


def published_at(world, *limits):
    secret = publish_metered(world, *limits)
    world.published.prices(PRICE)
    return secret


def reporting(provider, **usage):
    """Let the provider answer with this usage."""

    async def answer(scope, body, receive, send):
        await whole(send, {"model": "gpt-x", "choices": [{"message": {"content": "x"}}] * 3, "usage": usage})

    provider.answer = answer


async def test_cached_tokens_are_charged_once_and_at_their_price(world, aio_limiter, door, provider):
    reporting(provider, prompt_tokens=1_000, completion_tokens=10, prompt_tokens_details={"cached_tokens": 900})
    secret = published_at(world, USD, TPM)
    await ask(door, secret, HELLO)
    assert await used(aio_limiter, secret) == {"usd": 100 + 90 + 40, "tpm": 1_010}


@pytest.mark.parametrize(("calls", "micros"), [({}, 14), ({"calls": 10**10}, 20_014)])
async def test_searches_of_the_provider_have_their_own_price(world, aio_limiter, door, provider, calls, micros):
    """They are no tokens. Without a price for them, the settlement says that the money is approximate."""
    item = {"type": "web_search_call", "action": {"type": "search"}}
    usage = {"input_tokens": 10, "output_tokens": 1}
    provider.answer = lambda scope, body, receive, send: whole(send, {"output": [item, item], "usage": usage})
    secret = publish_metered(world, USD, TPM)
    world.published.prices({**PRICE, **calls})
    rows = aio_limiter.metered_tally()
    assert (await ask(door, secret, HELLO, path="/v1/responses")).status == 200

    assert await used(aio_limiter, secret) == {"usd": micros, "tpm": 11}
    (row,) = (dict(zip((*ROW_NAMES, *COUNT_NAMES), row, strict=True)) for row in rows.take(9))
    assert (row["approximate"], row["micros"], row["calls"]) == (int(not calls), micros, 2)


async def test_a_compaction_is_charged_beside_its_message(world, aio_limiter, door, provider):
    """Anthropic lists it apart. It reads the whole conversation once more."""
    step = {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500}
    usage = {"input_tokens": 10, "output_tokens": 1, "iterations": [step, {"type": "message", "input_tokens": 10}]}
    provider.answer = lambda scope, body, receive, send: whole(send, {"content": [], "usage": usage})
    secret = publish_metered(world, fixed(10**9, name="tpm", unit="tokens"))
    assert (await ask(door, secret, HELLO, path="/v1/messages")).status == 200
    assert await used(aio_limiter, secret) == {"tpm": 183_511}


async def test_tokens_of_reasoning_are_part_of_the_output(world, aio_limiter, door, provider):
    reporting(provider, prompt_tokens=1, completion_tokens=50, completion_tokens_details={"reasoning_tokens": 48})
    secret = published_at(world, USD, OUTPUT)
    await ask(door, secret, HELLO)
    assert await used(aio_limiter, secret) == {"usd": 201, "out": 50}


async def test_each_of_several_answers_is_reserved(world, aio_limiter, door, provider):
    """With a cap of 500, three answers may have 1,500 tokens."""
    reporting(provider, prompt_tokens=1, completion_tokens=9)
    short = fixed(1_400, name="out", unit="output_tokens")
    secret = publish_metered(world, short)
    assert (await ask(door, secret, {**HELLO, "n": 3})).status == 429
    assert (await ask(door, secret, {**HELLO, "n": 2})).status == 200
    assert await used(aio_limiter, secret) == {"out": 9}


async def test_arguments_of_tools_in_a_stream_that_breaks_off_are_charged(world, aio_limiter, door, provider):
    secret = publish_metered(world, TPM)
    call = {"index": 0, "function": {"name": "find", "arguments": "x" * 76}}

    async def break_off(scope, body, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        delta = event({"choices": [{"delta": {"tool_calls": [call]}}]})
        await send({"type": "http.response.body", "body": delta, "more_body": True})
        raise RuntimeError("broken")

    provider.answer = break_off
    with pytest.raises(RuntimeError, match="broken"):
        await ask(door, secret, STREAM)
    assert await used(aio_limiter, secret) == {"tpm": 100 + 20}


@pytest.mark.parametrize("end", ["answer", "leave", "cancel"])
async def test_a_settlement_that_cannot_be_written_is_written_later(server, world, aio_limiter, door, provider, end):
    """The store does not reply while a stream ends. What it did cost is charged when the store is back."""
    secret = publish_metered(world, TPM)
    provider.pause, provider.words = 0.02, 10
    visit = Visit(door, secret, STREAM)
    while not visit.answer.chunks:
        await asyncio.sleep(0.005)
    server.freeze()
    try:
        if end == "leave":
            visit.leave()
        elif end == "cancel":
            visit.task.cancel()
        await asyncio.wait({visit.task}, timeout=5)
        assert visit.task.done()
        assert end != "answer" or visit.answer.complete
    finally:
        server.thaw()

    def settled():
        return not records(world)

    assert await asyncio.to_thread(eventually, settled)
    with Limiter(server.url, timeout=1.0, lookup=1.0) as other:
        (state,) = other.check(secret, {"requests": 0, "tokens": 0}).limits
    spent = state.quota - state.remaining
    assert spent == 130 if end == "answer" else 100 < spent < 115


async def test_many_that_leave_at_once_leave_nothing_open(world, aio_limiter, door, provider):
    secret = publish_metered(
        world, TPM, {"name": "slots", "algorithm": "concurrency", "quota": 60, "window_seconds": 60}
    )
    provider.pause, provider.words = 0.02, 1_000
    visits = [Visit(door, secret, STREAM) for _ in range(50)]
    while not all(visit.answer.chunks for visit in visits):
        await asyncio.sleep(0.01)
    for at, visit in enumerate(visits):
        if at % 2:
            visit.leave()
        else:
            visit.task.cancel()
    await asyncio.wait({visit.task for visit in visits}, timeout=5)

    spent = await used(aio_limiter, secret)
    assert records(world) == []
    assert spent["slots"] == 0
    assert 50 * 100 < spent["tpm"] < 50 * 400
