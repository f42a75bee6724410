"""What an answer changes of the price by which its request was reserved."""

import json

import pytest

from enforcement.metering.answer import AnswerMeter
from enforcement.metering.exchange import MeteredExchange
from enforcement.metering.opening import open_request
from enforcement.metering.prices import Price, Prices, Rates
from enforcement.metering.request import read_request
from enforcement.metering.tally import COUNT_NAMES, ROW_NAMES, MeteredTally
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering

M = 1_000_000
BOOK = Prices(
    1,
    prices=(
        Price("cheap", Rates(M, M)),
        Price("dear", Rates(9 * M, 9 * M)),
        Price("gemini-*", Rates(M, M)),
        Price("images", Rates(M, M, output_image=40 * M)),
        Price("*", Rates(99 * M, 99 * M)),
    ),
    reported_costs=frozenset({"router.example"}),
)
BUDGET = Limit(name="usd", quota=10**9, calendar="month", unit="micros")
USAGE = {"prompt_tokens": 10, "completion_tokens": 2}


def settled(body, answer, path="/v1/chat/completions", upstream=""):
    """Return the settlement of one request, and the row that counts it."""
    asked = read_request("POST", path, {}.get, json.dumps({"model": "cheap", "messages": [], **body}).encode())
    opening = open_request(asked, [BUDGET], Metering(), BOOK, 0)
    exchange = MeteredExchange(opening, 0)
    exchange.upstream = upstream
    exchange.answered(200, None, 1)
    exchange.feed(json.dumps(answer).encode())
    _, settlement = exchange.ended(2, whole=True)
    tally = MeteredTally()
    tally.settled(("proj", "tok"), 0, opening, settlement)
    (row,) = tally.take(1)
    return settlement, dict(zip((*ROW_NAMES, *COUNT_NAMES), row, strict=False))


@pytest.mark.parametrize(
    ("model", "micros"), [("cheap", 12), ("dear", 108), ("dear-unheard", 12), ("unheard", 12), (None, 12), (7, 12)]
)
def test_an_answer_that_names_a_dearer_model_is_charged_by_it(model, micros):
    """The row says the same as the limit. A pattern for any model says nothing of this one."""
    settlement, row = settled({}, {"model": model, "choices": [], "usage": USAGE})
    assert (settlement.costs, row["micros"], row["model"]) == ((micros,), micros, "cheap")


@pytest.mark.parametrize(("upstream", "micros", "approximate"), [("router.example", 77, 0), ("x", 12, 1), ("", 12, 1)])
def test_a_reported_cost_is_charged_where_the_prices_name_the_upstream(upstream, micros, approximate):
    answer = {"model": "dear", "choices": [], "usage": {**USAGE, "cost": 0.000077}}
    settlement, row = settled({}, {**answer, "model": "cheap"}, upstream=upstream)
    assert (settlement.costs, row["micros"], row["approximate"]) == ((micros,), micros, approximate)
    dearer, _ = settled({}, answer, upstream=upstream)
    assert dearer.costs == ((77,) if upstream == "router.example" else (108,))


def test_images_of_a_tool_are_charged_by_the_model_that_the_request_names():
    made = {"input_tokens": 5, "output_tokens": 100, "output_tokens_details": {"image_tokens": 100}}
    answer = {"usage": {"input_tokens": 10, "output_tokens": 2}, "tool_usage": {"image_gen": made}}
    tools = [{"type": "image_generation", "model": "images"}]
    settlement, row = settled({"input": "x", "tools": tools}, answer, "/v1/responses")
    assert settlement.costs == (12 + 5 + 4_000,)
    assert (row["micros"], row["input"], row["output"], row["approximate"]) == (4_017, 15, 102, 0)


@pytest.mark.parametrize(
    ("status", "costs", "way"),
    [("completed", 12, "exact"), ("queued", 41, "estimated"), ("in_progress", 41, "estimated")],
)
def test_an_answer_of_the_background_counts_if_it_came_to_its_end(status, costs, way):
    """It comes to its end as a stream, or where a server does not know the background."""
    answer = {"status": status, "output": [], "usage": {"input_tokens": 10, "output_tokens": 2}}
    body = {"input": "abcd", "background": True, "max_output_tokens": 40}
    settlement, _ = settled(body, answer, "/v1/responses")
    assert (settlement.costs, settlement.settled_as) == ((costs,), way)


@pytest.mark.parametrize(("count", "whole", "way"), [(1, False, "exact"), (2, False, "estimated"), (2, True, "exact")])
def test_the_first_of_several_candidates_is_not_the_last_word(count, whole, way):
    """Its usage is that of all so far. Who left then got the others for nothing."""
    body = {"contents": [], "generationConfig": {"candidateCount": count, "maxOutputTokens": 40}}
    path = "/v1beta/models/cheap:streamGenerateContent?alt=sse"
    asked = read_request("POST", path, {}.get, json.dumps(body).encode())
    exchange = MeteredExchange(open_request(asked, [BUDGET], Metering("bound"), BOOK, 0), 0)
    exchange.answered(200, None, 1)
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 2}
    chunk = {"candidates": [{"index": 0, "finishReason": "STOP"}], "usageMetadata": usage}
    exchange.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    _, settlement = exchange.ended(2, whole=whole)
    assert settlement.settled_as == way


def test_a_call_that_counts_tokens_reads_its_answer_as_nothing_used():
    for format in ("anthropic-count", "openai-count", "gemini-count", "bedrock-count"):
        meter = AnswerMeter(format)
        meter.feed(b'{"totalTokens": 700}')
        meter.finish()
        assert (meter.usage.all_input, meter.settled_as) == (0, "exact")


@pytest.mark.parametrize(("model", "times"), [("cheap", 1), ("dear", 9), ("unheard", 1), (None, 1)])
@pytest.mark.parametrize("rules", [{"estimate": "bound"}, {}])
def test_an_estimate_that_stays_is_charged_by_the_dearer_model_that_answers(model, times, rules):
    """The answer names it, and breaks off without usage, or with usage that is not final."""
    body = {"model": "cheap", "max_tokens": 50, "stream": True, "reasoning_effort": "low",
            "messages": [{"role": "user", "content": "x" * 40}]}  # fmt: skip
    for more in ({}, {"usage": USAGE}):
        asked = read_request("POST", "/v1/chat/completions", {}.get, json.dumps(body).encode())
        opening = open_request(asked, [BUDGET], Metering(**rules), BOOK, 0)
        exchange = MeteredExchange(opening, 0)
        exchange.answered(200, None, 1)
        event = {"model": model, "choices": [{"delta": {"content": "a"}}], **more}
        exchange.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
        _, settlement = exchange.ended(2, whole=True)
        assert settlement.settled_as == "estimated"
        assert settlement.costs == tuple(cost * times for cost in opening.estimated_costs)
        assert (settlement.price is None) == (times == 1)


@pytest.mark.parametrize(
    ("path", "answer", "micros"),
    [
        ("/v1/messages/count_tokens", {"input_tokens": 700}, 0),
        ("/v1/responses/input_tokens", {"object": "response.input_tokens", "input_tokens": 700}, 0),
        ("/v1beta/models/cheap:countTokens", {"totalTokens": 700, "promptTokensDetails": []}, 0),
        ("/v1/tokenize", {"tokens": [1], "meta": {"api_version": {"version": "1"}}}, 0),
        ("/v1/messages/count_tokens", {"content": [], "usage": {"input_tokens": 10, "output_tokens": 2}}, 12),
        ("/v1/responses/input_tokens", {"output": [], "usage": {"input_tokens": 10, "output_tokens": 2}}, 12),
        ("/v1beta/models/cheap:countTokens", {"usageMetadata": {"promptTokenCount": 9, "thoughtsTokenCount": 3}}, 12),
        ("/v1/tokenize", {"usage": USAGE}, 12),
        ("/v1/tokenize", {"model": "dear", "usage": USAGE}, 108),
        ("/model/cheap/count-tokens", {"usage": {"inputTokens": 10, "outputTokens": 2}}, 12),
    ],
)
def test_a_call_that_counts_tokens_costs_what_its_answer_reports(path, answer, micros):
    """Usage in it means that it was no count."""
    settlement, row = settled({}, answer, path)
    assert (settlement.settled_as, settlement.costs, row["micros"]) == ("exact", (micros,), micros)


def answered(answer, path="/v1/chat/completions", status=200, estimate="bound", model="cheap"):
    """Return the settlement of one request of a streaming client, whose answer comes as events if it is a list."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "x" * 500}],
        "input": "x" * 500,
        "max_tokens": 90,
    }
    body = {name: body[name] for name in body if name != ("input" if "chat" in path else "messages")}
    if "chat" not in path:
        body["max_output_tokens"] = body.pop("max_tokens")
    asked = read_request("POST", path, {}.get, json.dumps(body).encode())
    exchange = MeteredExchange(open_request(asked, [BUDGET], Metering(estimate), BOOK, 0), 0)
    exchange.answered(status, None, 1)
    if type(answer) is list:
        exchange.feed(b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in answer) + b"data: [DONE]\n\n")
    else:
        exchange.feed(json.dumps(answer).encode())
    return exchange.ended(2, whole=True)[1], exchange.opening.estimate


GROK = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 43}
REASONED = {"completion_tokens_details": {"reasoning_tokens": 30}}


@pytest.mark.parametrize(
    ("model", "usage", "micros"),
    [
        ("cheap", {**GROK, **REASONED}, 43),  # as xAI reports it
        ("gemini-3", GROK, 43),
        ("gemini-3", {**GROK, "total_tokens": 10**18}, 13),
        ("cheap", GROK, 13),
        ("cheap", {**GROK, "total_tokens": 13, **REASONED}, 13),
        ("cheap", {**GROK, "total_tokens": None, **REASONED}, 13),
        ("cheap", {"prompt_tokens": 12, "completion_tokens": 31, "total_tokens": 43, **REASONED}, 43),  # as OpenAI does
    ],
)
@pytest.mark.parametrize("streams", [True, False])
def test_reasoning_that_only_the_total_has_is_charged(model, usage, micros, streams):
    whole = {"model": model, "choices": [], "usage": usage}
    began = {"model": model, "choices": [{"delta": {"content": "a"}}], "usage": usage}
    settlement, _ = answered([began, began, whole] if streams else whole, model=model)
    assert (settlement.settled_as, settlement.costs) == ("exact", (micros,))


def test_a_prompt_that_a_filter_has_read_is_charged():
    """Azure charges it. Any other refusal costs nothing."""
    for path in ("/v1/chat/completions", "/v1/responses"):
        refusal = {"error": {"code": "content_filter", "message": "The response was filtered", "status": 400}}
        settlement, estimate = answered(refusal, path, 400)
        assert (settlement.settled_as, settlement.costs) == ("estimated", (estimate.input,))
        assert estimate.input > 500
        assert answered({"error": {"code": "bad"}}, path, 400)[0].settled_as == "nothing"
        assert answered({"error": "content_filter"}, path, 400)[0].settled_as == "nothing"
    assert answered({"error": {"code": "content_filter"}}, status=400, estimate="typical")[0].costs == (125,)
