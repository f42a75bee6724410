"""Admissions that are settled from what a provider's response or stream reports."""

import contextlib
import json
import logging

import pytest

from enforcement import Limit
from enforcement.logs import RateLimitedLogger
from enforcement.metering.price_documents import parse_prices
from enforcement.metering.reported import read_report
from enforcement.reservations import reported
from tests.enforcement.doors.metered.budgets import TPM, publish_metered

pytestmark = pytest.mark.usefixtures("documents")

PRICES = parse_prices(
    json.dumps({"schema": 1, "revision": 7, "prices": [{"model": "gpt-*", "input": 1_000_000, "output": 4_000_000}]})
)
TOKENS = Limit(name="tokens", unit="tokens", quota=100_000, window_seconds=3_600)
WEIGHED = Limit(name="weighed", unit="tokens", quota=100_000, window_seconds=3_600, weights={"output": 2_000})
MONEY = Limit(name="usd", unit="micros", quota=10_000_000, window_seconds=3_600)
REQUESTS = Limit(name="requests", quota=100, window_seconds=3_600)
ALL = [TOKENS, WEIGHED, MONEY, REQUESTS]
ESTIMATE = {"tokens": 5_000, "micros": 9_000}

USAGE = {"prompt_tokens": 100, "completion_tokens": 30, "prompt_tokens_details": {"cached_tokens": 40}}
CHAT = {"object": "chat.completion", "model": "gpt-x", "choices": [{"message": {"content": "hi"}}], "usage": USAGE}
WORD = {"object": "chat.completion.chunk", "model": "gpt-x", "choices": [{"delta": {"content": "12345678"}}]}
LAST = {"object": "chat.completion.chunk", "model": "gpt-x", "choices": [], "usage": USAGE}
START = {"type": "message_start", "message": {"model": "claude-x", "usage": {"input_tokens": 100, "output_tokens": 1}}}
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 80}}


def used_in_order(limiter, key):
    """What each limit has counted, and 1 for each request that was admitted."""
    return [state.quota - state.remaining for state in limiter.peek(ALL, key).limits]


def test_a_response_settles_tokens_and_money(limiter):
    """Each limit by its weights and prices. What counts requests keeps its charge."""
    with limiter.admit(ALL, "whole", costs=ESTIMATE) as admission:
        report = admission.settle_from(CHAT, prices=PRICES)

    assert (report.format, report.model, report.usage.cached_input) == ("openai-chat", "gpt-x", 40)
    assert used_in_order(limiter, "whole") == [130, 160, 100 + 4 * 30, 1]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"object": "response", "model": "m", "usage": {"input_tokens": 7, "output_tokens": 2}}, 9),
        ({"object": "text_completion", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}, 9),
        ({"object": "list", "data": [], "usage": {"prompt_tokens": 7, "total_tokens": 7}}, 7),
        ({"type": "message", "usage": {"input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 2}}, 14),
        ({"candidates": [], "usageMetadata": {"promptTokenCount": 7, "thoughtsTokenCount": 3}}, 10),
        ({"candidates": None, "usage_metadata": {"prompt_token_count": 7, "candidates_token_count": 3}}, 10),
        ({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}, 9),
    ],
)
def test_the_format_is_found_by_its_fields(body, tokens):
    usage = read_report(body).usage
    assert usage.input + usage.cached_input + usage.cache_write + usage.output == tokens


@pytest.mark.parametrize(
    ("response", "rule"),
    [
        (None, "must be a response of one of the formats openai-chat, .*, got NoneType"),
        ({"error": {"message": "no"}}, "must be a response of .*, got an object with error"),
        ({}, "got an object with no fields"),
        (iter([CHAT]), "A stream passes through metered"),
        ({**CHAT, "usage": None}, "must report its usage, got an object with .* of openai-chat without it"),
        ({**CHAT, "usage": {**USAGE, "prompt_tokens": -1}}, "must report its usage"),
    ],
)
def test_a_response_without_usage_is_an_error_and_the_estimate_stays(limiter, response, rule):
    """The admission can still be settled afterwards."""
    with limiter.admit(TOKENS, "bad", costs={"tokens": 50}) as admission:
        with pytest.raises(ValueError, match=f"response: .*{rule}"):
            admission.settle_from(response)
        assert limiter.peek(TOKENS, "bad").remaining == 100_000 - 50
        admission.settle_from(CHAT)

    assert limiter.peek(TOKENS, "bad").remaining == 100_000 - 130
    limiter.reset([TOKENS], "bad")


@pytest.mark.parametrize("response", [{**CHAT, "usage": None}, None, b"{}"])
def test_an_answer_that_cannot_be_read_is_never_given_back(limiter, response):
    """The error ends the block, as any other does that gives the estimate back. But the provider has answered."""
    with pytest.raises(ValueError, match="response: must"), limiter.admit(ALL, "unread", costs=ESTIMATE) as admission:
        admission.settle_from(response)
    assert used_in_order(limiter, "unread") == [5_000, 5_000, 9_000, 1]

    with limiter.admit(ALL, "by hand", costs=ESTIMATE) as admission:
        with pytest.raises(ValueError, match="response: must"):
            admission.settle_from(response)
        admission.settle({"tokens": 7, "micros": 8})
    assert used_in_order(limiter, "by hand") == [7, 7, 8, 1]


@pytest.mark.parametrize(("limit", "costs"), [(MONEY, {"micros": 9_000}), (REQUESTS, 1)])
def test_an_error_after_the_report_gives_back_nothing(limiter, limit, costs):
    """Also what keeps its estimate: money without a price, and limits of requests alone."""
    with contextlib.suppress(KeyError), limiter.admit(limit, "late", costs=costs) as admission:
        admission.settle_from({**CHAT, "model": "of-nobody"}, prices=PRICES)
        raise KeyError
    assert limiter.peek(limit, "late").limits[0].remaining < limit.quota


def test_money_without_a_price_keeps_its_estimate(limiter):
    with limiter.admit(ALL, "unpriced", costs=ESTIMATE) as admission:
        admission.settle_from(CHAT)

    assert used_in_order(limiter, "unpriced") == [130, 160, 9_000, 1]


def test_the_published_prices_are_used(limiter, world):
    """Without further arguments, as soon as an operator has published some."""
    world.published.prices({"model": "gpt-*", "input": 1_000_000, "output": 4_000_000})
    with limiter.admit(ALL, "published", costs=ESTIMATE) as admission:
        admission.settle_from(CHAT)

    assert used_in_order(limiter, "published")[2] == 220


def test_the_model_of_the_request_can_be_named(limiter):
    """An answer may have a longer name, or none."""
    with limiter.admit(ALL, "named", costs=ESTIMATE) as admission:
        admission.settle_from({**CHAT, "model": "unknown"}, model="gpt-x", prices=PRICES)

    assert used_in_order(limiter, "named")[2] == 220


def test_a_stream_is_settled_at_its_end(limiter):
    with limiter.admit(ALL, "stream", costs=ESTIMATE) as admission:
        events = list(admission.metered([WORD, LAST], prices=PRICES))
        assert used_in_order(limiter, "stream") == [130, 160, 220, 1]

    assert events == [WORD, LAST]


def leave_at(limiter, key, events, place):
    """Leave the block of an admission by an exception, at this place of a stream."""
    with limiter.admit(TOKENS, key, costs={"tokens": 5_000}) as admission:
        stream = admission.metered(events)
        for _ in range(place):
            next(stream)
        raise InterruptedError


def test_a_stream_that_is_left_costs_what_was_seen(limiter):
    """100 tokens of input, and 20 for 80 bytes, also if an exception leaves the block."""
    with pytest.raises(InterruptedError):
        leave_at(limiter, "left", [START, DELTA, DELTA], 2)

    assert limiter.peek(TOKENS, "left").remaining == 100_000 - 120


def test_a_stream_without_a_report_keeps_its_estimate(limiter, caplog, monkeypatch):
    """Also if an exception leaves the block: the provider may have generated as much."""
    # The line of another test may be less than a second ago.
    monkeypatch.setattr(reported, "_SAY", RateLimitedLogger(logging.getLogger("sluicegate.reservations")))
    with caplog.at_level(logging.WARNING, "sluicegate"), pytest.raises(InterruptedError):
        leave_at(limiter, "silent", [WORD], 1)

    assert limiter.peek(TOKENS, "silent").remaining == 95_000
    assert 'stream_options={"include_usage": True}' in caplog.text


def test_a_stream_that_never_began_is_given_back(limiter):
    with pytest.raises(InterruptedError):
        leave_at(limiter, "never", [WORD], 0)

    assert limiter.peek(TOKENS, "never").remaining == 100_000


def test_events_of_any_kind_pass_unchanged(limiter):
    """What a meter cannot read is no reason to break a stream."""
    events = [None, 3, b"data", {"type": 5}, {"object": []}, {"usage": "x"}, LAST, {"choices": "x", "usage": []}]
    with limiter.admit(TOKENS, "odd", costs={"tokens": 5_000}) as admission:
        assert list(admission.metered(events)) == events

    assert limiter.peek(TOKENS, "odd").remaining == 100_000 - 130


def test_what_is_no_stream_is_an_error_at_once(limiter):
    admission = limiter.open_admission(TOKENS, "type", costs={"tokens": 1})
    with pytest.raises(TypeError, match="stream: must be an iterable of events, got int"):
        admission.metered(5)
    admission.finish(200)


def test_limits_of_requests_alone_keep_their_charge(limiter):
    with limiter.admit(REQUESTS, "plain") as admission:
        admission.settle_from(CHAT)

    assert limiter.peek(REQUESTS, "plain").remaining == 99


async def events(*of):
    for event in of:
        yield event


async def leave_at_aio(limiter, key):
    """Leave the block of an admission by an exception, at the second event of a stream."""
    async with limiter.admit(TOKENS, key, costs={"tokens": 5_000}) as admission:
        async for event in admission.metered(events(START, DELTA, LAST)):
            if event is DELTA:
                raise InterruptedError


async def test_the_asyncio_limiter_does_the_same(aio_limiter):
    async with aio_limiter.admit(ALL, "aio", costs=ESTIMATE) as admission:
        await admission.settle_from(CHAT, prices=PRICES)
    async with aio_limiter.admit(TOKENS, "stream", costs={"tokens": 5_000}) as admission:
        assert [event async for event in admission.metered(events(START, DELTA))] == [START, DELTA]
    with pytest.raises(InterruptedError):
        await leave_at_aio(aio_limiter, "left_aio")

    states = (await aio_limiter.peek(ALL, "aio")).limits
    assert [state.quota - state.remaining for state in states] == [130, 160, 220, 1]
    for key in ("stream", "left_aio"):
        assert (await aio_limiter.peek(TOKENS, key)).remaining == 100_000 - 120


async def test_an_answer_that_cannot_be_read_is_never_given_back_by_asyncio(aio_limiter):
    with pytest.raises(ValueError, match="response: must"):
        async with aio_limiter.admit(ALL, "unread", costs=ESTIMATE) as admission:
            await admission.settle_from({"error": {}})
    assert [it.quota - it.remaining for it in (await aio_limiter.peek(ALL, "unread")).limits] == [
        5_000,
        5_000,
        9_000,
        1,
    ]


async def test_a_stream_for_another_kind_of_loop_is_an_error_at_once(aio_limiter):
    admission = await aio_limiter.open_admission(TOKENS, "type", costs={"tokens": 1})
    with pytest.raises(TypeError, match="must be an asynchronous iterable of events, got list"):
        admission.metered([LAST])
    await admission.finish(200)


@pytest.mark.parametrize(
    ("rules", "stream", "tokens"),
    [
        ({}, [START, DELTA], 120),
        ({"estimate": "bound"}, [START, DELTA], 5_000),
        ({"estimate": "bound"}, [WORD, LAST], 130),
        ({}, [START, {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": "x"}}], 5_000),
        ({}, [{**START, "message": {**START["message"], "usage": {"input_tokens": 9_000, "output_tokens": 1}}}, DELTA],
         9_020),
        ({"estimate": "bound"}, [{**START, "message": {"usage": {"input_tokens": 9_000, "output_tokens": 1}}}, DELTA],
         9_020),
    ],
)  # fmt: skip
async def test_a_stream_that_is_left_costs_no_less_than_what_may_have_been_generated(
    world, limiter, aio_limiter, rules, stream, tokens
):
    """With a bound, and where output is hidden, the estimate stays without the provider's last word."""
    secret = publish_metered(world, TPM, **rules)
    with limiter.admit(secret, costs={"tokens": 5_000}) as admission:
        for event in (left := admission.metered(iter(stream))):
            if event is stream[1]:
                break
        left.close()
    assert 100_000 - limiter.check(secret, {"tokens": 0}).limits[0].remaining == tokens
    async with aio_limiter.admit(secret, costs={"tokens": 5_000}) as admission:
        async for event in (left := admission.metered(events(*stream))):
            if event is stream[1] and rules != {"estimate": "bound"}:
                break
        await left.aclose()
    assert 100_000 - (await aio_limiter.check(secret, {"tokens": 0})).limits[0].remaining == 2 * tokens
