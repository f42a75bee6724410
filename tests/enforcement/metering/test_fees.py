"""What providers charge beside the tokens of a message, such as calls of their own tools."""

import json

import pytest

from enforcement.metering.amounts import CLASSES, Usage
from enforcement.metering.answer import AnswerMeter
from enforcement.metering.charges import Counts
from enforcement.metering.prices import Price, Rates
from enforcement.metering.reported import StreamReport

CHAT = {"prompt_tokens": 5, "completion_tokens": 3}
RESPONSE = {"input_tokens": 5, "output_tokens": 3}
GEMINI = {"promptTokenCount": 5, "candidatesTokenCount": 3}
SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}}
OPEN_PAGE = {"type": "web_search_call", "status": "completed", "action": {"type": "open_page", "url": "https://x"}}
FILES = {"type": "file_search_call", "queries": ["x"]}
ASKED = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
CITED = {"type": "url_citation", "url_citation": {"url": "https://x"}}


def read(format, *events, whole=True):
    """Return the meter of a body, or of a stream if there are several events."""
    meter = AnswerMeter(format)
    if len(events) == 1 and whole:
        meter.feed(json.dumps(events[0]).encode())
    else:
        for event in events:
            meter.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    meter.finish(whole)
    return meter


def message(usage, *content):
    return {"type": "message", "model": "claude", "content": [*content], "usage": {**RESPONSE, **usage}}


def grounded(*queries):
    return {"groundingMetadata": {"webSearchQueries": [*queries]}}


@pytest.mark.parametrize(
    ("format", "body", "calls"),
    [
        ("openai-responses", {"output": [SEARCH, OPEN_PAGE, SEARCH, FILES], "usage": RESPONSE}, 3),
        ("openai-responses", {"output": [{"type": "web_search_call"}, {"type": "message"}], "usage": RESPONSE}, 1),
        ("openai-responses", {"output": [{"type": ["x"]}, {"type": "mcp_call"}], "usage": RESPONSE}, 0),
        ("openai-chat", {"choices": [{"message": {"annotations": [CITED, CITED]}}], "usage": CHAT}, 1),
        ("openai-chat", {"choices": [{"message": {"annotations": []}}], "usage": CHAT}, 0),
        ("openai-chat", {"choices": [], "usage": {**CHAT, "server_tool_use": {"web_search_requests": 3}}}, 3),
        ("openai-chat", {"choices": [], "usage": {**CHAT, "server_tool_use": [3]}}, 0),
        ("anthropic-messages", message({"server_tool_use": {"web_search_requests": 2}}, ASKED), 2),
        ("anthropic-messages", message({}, ASKED, ASKED), 2),
        # A search that failed was asked for, and has no fee.
        ("anthropic-messages", message({"server_tool_use": {"web_search_requests": 0}}, ASKED), 0),
        ("anthropic-messages", message({"server_tool_use": {"web_search_requests": -1, "x": []}}), 0),
        ("anthropic-messages", message({"server_tool_use": {"web_fetch_requests": 4}}), 0),
        ("gemini", {"candidates": [{"groundingMetadata": {"webSearchQueries": "ab"}}], "usageMetadata": GEMINI}, 0),
        ("gemini", {"candidates": [grounded("a", "b"), grounded("c")], "usageMetadata": GEMINI}, 3),
    ],
)  # fmt: skip
def test_calls_of_tools_with_a_fee_are_counted(format, body, calls):
    meter = read(format, body)
    usage = meter.usage
    assert (meter.settled_as, usage.all_input, usage.all_output, usage.calls) == ("exact", 5, 3, calls)


def test_calls_in_a_stream_are_counted_once():
    """Each format says them several times."""
    done = [{"type": "response.output_item.done", "item": SEARCH}] * 2
    last = {"type": "response.completed", "response": {"output": [SEARCH, SEARCH], "usage": RESPONSE}}
    assert read("openai-responses", *done, last).usage.calls == 2

    start = {"type": "message_start", "message": message({"server_tool_use": {"web_search_requests": 0}})}
    block = {"type": "content_block_start", "content_block": ASKED}
    usage = {"output_tokens": 3, "server_tool_use": {"web_search_requests": 1}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    assert read("anthropic-messages", start, block, block, delta).usage.calls == 1

    chunk = {"candidates": [grounded("a")], "usageMetadata": GEMINI}
    assert read("gemini", chunk, chunk).usage.calls == 1


def test_calls_are_known_before_a_stream_breaks_off():
    start = {"type": "message_start", "message": message({"server_tool_use": {"web_search_requests": 0}})}
    block = {"type": "content_block_start", "content_block": ASKED}
    assert read("anthropic-messages", start, block, whole=False).calls == 1
    report = StreamReport()
    for event in (start, block):
        report.add(event)
    assert report.report().usage.calls == 1
    done = {"type": "response.output_item.done", "item": SEARCH}
    assert read("openai-responses", done, {"type": "x"}, whole=False).calls == 1


def test_a_call_costs_its_price_and_without_one_the_cost_is_approximate():
    """It is rounded together with the tokens, and no tier changes it."""
    rates = Rates(1_000_000, 4_000_000)
    priced = Price("*", rates, tiers=((1, rates),), calls=10_000_000_000)
    counts = Counts(5, output=3, calls=2)
    assert (priced.micros(counts), priced.approximates(counts)) == (5 + 12 + 20_000, False)
    assert (Price("*", rates).micros(counts), Price("*", rates).approximates(counts)) == (17, True)
    assert Price("*", rates, calls=0).approximates(counts) is False
    assert Price("*", Rates(0, 0), calls=1).micros(Counts(calls=1)) == 1


def beside(usage):
    """Return a usage without what only its price depends on."""
    return usage and Usage(*[getattr(usage, name) for name in CLASSES])


STEP = {"type": "message", **RESPONSE}
COMPACTION = {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500, "cache_read_input_tokens": 7}


@pytest.mark.parametrize(
    ("steps", "usage"),
    [
        ([STEP], Usage(5, output=3)),
        ([COMPACTION, STEP], Usage(180_005, 7, output=3_503)),
        ([COMPACTION, COMPACTION, STEP], Usage(360_005, 14, output=7_003)),
        ([{"type": "advisor_message", **RESPONSE}], Usage(10, output=6)),
        ([{"type": ["compaction"]}, None, 7], Usage(5, output=3)),
        ("compaction", Usage(5, output=3)),
        ([{**COMPACTION, "input_tokens": 10**9}] * 9, Usage(2 * 10**9, 63, output=31_503)),
        ([{**COMPACTION, "input_tokens": -1}], None),
    ],
)
def test_steps_beside_the_message_are_charged_too(steps, usage):
    """A compaction reads the whole conversation, and the counts of the message leave it out."""
    assert beside(read("anthropic-messages", message({"iterations": steps})).usage) == usage
    delta = {"type": "message_delta", "delta": {"stop_reason": "x"}, "usage": {"output_tokens": 3, "iterations": steps}}
    start = {"type": "message_start", "message": message({})}
    streamed = read("anthropic-messages", start, {"type": "ping"}, delta).usage
    assert beside(streamed) == (usage or Usage(5, output=3))


@pytest.mark.parametrize(
    ("format", "body"),
    [
        ("openai-chat", {"choices": [], "service_tier": "priority", "usage": CHAT}),
        ("openai-chat", {"choices": [], "usage": {**CHAT, "prompt_tokens_details": {"audio_tokens": 1}}}),
        ("openai-chat", {"choices": [], "usage": {**CHAT, "completion_tokens_details": {"audio_tokens": 1}}}),
        ("openai-responses", {"output": [], "service_tier": "flex", "usage": RESPONSE}),
        ("anthropic-messages", message({"service_tier": "priority"})),
        ("anthropic-messages", message({"speed": "fast"})),
        ("anthropic-messages", message({"cache_creation": {"ephemeral_1h_input_tokens": 1}})),
        ("gemini", {"usageMetadata": {**GEMINI, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 1}]}}),
    ],
)
def test_what_has_rates_that_no_class_has_is_approximate(format, body):
    usage = read(format, body).usage
    assert Price("*", Rates(1, 1, 1, 1)).approximates(usage)


@pytest.mark.parametrize("tier", [None, "default", "auto", "standard", 7, [], {}])
def test_a_usual_tier_is_exact(tier):
    assert read("openai-chat", {"choices": [], "service_tier": tier, "usage": CHAT}).usage == Usage(5, output=3)
    assert read("anthropic-messages", message({"service_tier": tier})).usage == Usage(5, output=3)
