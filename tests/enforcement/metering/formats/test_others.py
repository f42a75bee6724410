"""Cohere, embeddings, images and compactions: what is asked for, and what was used."""

import json

import pytest

from enforcement.metering.amounts import DetailedUsage, Usage
from enforcement.metering.answer import FORMATS, AnswerMeter
from enforcement.metering.request import read_request

UNITS = {"billed_units": {"input_tokens": 7, "output_tokens": 5}, "tokens": {"input_tokens": 70}}


def ask(path, body, cap=64):
    return read_request("POST", path, {}.get, json.dumps(body).encode(), default_cap=cap)


def read(format, *events):
    meter = AnswerMeter(format)
    for event in events:
        meter.feed(json.dumps(event).encode() if len(events) == 1 else b"data: " + json.dumps(event).encode() + b"\n\n")
    meter.finish()
    return meter


@pytest.mark.parametrize(
    ("path", "body", "format", "cap", "text", "parts"),
    [
        ("/v1/chat", {"model": "m", "message": "Hello", "preamble": "ab"}, "cohere-chat-v1", 64, 7, {}),
        (
            "/v2/chat",
            {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
            "cohere-chat-v2",
            9,
            5,
            {},
        ),
        (
            "/v2/chat",
            {
                "model": "m",
                "messages": [
                    {
                        "content": [
                            {"type": "text", "text": "ab"},
                            {"type": "document", "document": {"data": "cd"}},
                            {"type": "image_url"},
                        ]
                    }
                ],
            },
            "cohere-chat-v2",
            64,
            8,
            {"image": 1},
        ),
        (
            "/v2/embed",
            {"model": "m", "texts": ["Hel", "lo"], "images": ["data:image/png;base64,xx"]},
            "cohere-embed",
            0,
            5,
            {"image": 1},
        ),
        (
            "/v1/embed",
            {"model": "m", "inputs": [{"content": [{"type": "text", "text": "ab"}]}]},
            "cohere-embed",
            0,
            2,
            {},
        ),
        ("/v1beta/models/m:embedContent", {"content": {"parts": [{"text": "Hello"}]}}, "gemini-embeddings", 0, 5, {}),
        (
            "/v1beta/models/m:batchEmbedContents",
            {"requests": [{"content": {"parts": [{"text": "ab"}]}}] * 2},
            "gemini-embeddings",
            0,
            4,
            {},
        ),
        ("/v1/responses/compact", {"model": "m", "input": "Hello"}, "openai-compact", None, 5, {}),
        ("/v1/images/generations", {"model": "m", "prompt": "Hello", "n": 3}, "openai-images", 16_384, 5, {}),
        ("/openai/deployments/m/images/generations", {"prompt": "Hello"}, "openai-images", 16_384, 5, {}),
    ],
)
def test_a_request_says_what_it_asks_for(path, body, format, cap, text, parts):
    asked = ask(path, body)
    assert (asked.format, asked.attributes["model"], asked.cap) == (format, "m", cap)
    assert (asked.text_bytes, asked.parts) == (text, parts)
    assert format in FORMATS


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        # Another provider has messages under this path.
        ("/v1/chat", {"model": "m", "messages": [{"content": "x"}]}, "format"),
        ("/v2/chat", {"model": "m", "messages": [], "max_tokens": -1}, "bad_cap"),
        ("/v1/images/generations", {"model": "m", "prompt": "x", "n": 0}, "bad_n"),
        ("/v1/images/generations", {"prompt": "x"}, "no_model"),
        ("/v1beta/models/m:embedContent?alt=proto", {"content": {}}, "bad_query"),
        ("/v1/chat", {"model": "m", "Message": "x", "message": "x"}, "duplicate_key"),
    ],
)
def test_what_cannot_be_read_is_unmetered(path, body, reason):
    assert ask(path, body).reason == reason


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat", {"model": "m", "message": "x", "connectors": [{"id": "web-search"}]}),
        ("/v1/images/generations", {"model": "m", "prompt": "x"}),
        ("/v1/responses/compact", {"model": "m", "input": "x"}),
    ],
)
def test_what_has_no_bound_says_so(path, body):
    assert ask(path, body).unbounded


@pytest.mark.parametrize(
    ("format", "events", "usage", "text"),
    [
        ("cohere-chat-v1", [{"text": "abc", "meta": UNITS}], Usage(7, output=5), 3),
        (
            "cohere-chat-v2",
            [{"message": {"content": [{"type": "text", "text": "abc"}]}, "usage": UNITS}],
            Usage(7, output=5),
            3,
        ),
        (
            "cohere-chat-v2",
            [
                {"type": "content-delta", "delta": {"message": {"content": {"text": "abc"}}}},
                {"type": "message-end", "delta": {"usage": UNITS}},
            ],
            Usage(7, output=5),
            3,
        ),
        (
            "cohere-chat-v2",
            [{"message": {}, "usage": {"billed_units": {"input_tokens": 7, "search_units": 1}}}],
            Usage(7, other_rates=True),
            0,
        ),
        ("cohere-chat-v2", [{"message": {}, "usage": {"billed_units": {"input_tokens": -7}}}], None, 0),
        ("cohere-chat-v2", [{"message": {}, "usage": {"tokens": {"input_tokens": 7}}}], None, 0),
        (
            "cohere-embed",
            [{"meta": {"billed_units": {"input_tokens": 7, "image_tokens": 3}}}],
            DetailedUsage(7, input_image=3),
            0,
        ),
        (
            "gemini-embeddings",
            [
                {
                    "embeddings": [],
                    "usageMetadata": {
                        "promptTokenCount": 7,
                        "promptTokenDetails": [{"modality": "AUDIO", "tokenCount": 2}],
                    },
                }
            ],
            DetailedUsage(5, input_audio=2),
            0,
        ),
        ("openai-embeddings", [{"data": [], "usage": {"total_tokens": 7}}], Usage(7), 0),
        (
            "openai-compact",
            [{"object": "response.compaction", "output": [], "usage": {"input_tokens": 7, "output_tokens": 5}}],
            Usage(7, output=5),
            0,
        ),
        (
            "openai-images",
            [
                {
                    "data": [],
                    "usage": {"input_tokens": 7, "input_tokens_details": {"image_tokens": 3}, "output_tokens": 5},
                }
            ],
            DetailedUsage(4, input_image=3, output_image=5),
            0,
        ),
        (
            "openai-images",
            [
                {
                    "usage": {
                        "input_tokens": 7,
                        "output_tokens": 5,
                        "output_tokens_details": {"image_tokens": 4, "text_tokens": 1},
                    }
                }
            ],
            DetailedUsage(7, output=1, output_image=4),
            0,
        ),
        (
            "openai-images",
            [
                {"type": "image_generation.partial_image"},
                {"type": "image_generation.completed", "usage": {"input_tokens": 7, "output_tokens": 5}},
            ],
            DetailedUsage(7, output_image=5),
            0,
        ),
        ("anthropic-count", [{"input_tokens": 700}], Usage(), 0),
        (
            "openai-chat",
            [
                {
                    "choices": [{"delta": {"content": "abc"}}],
                    "x_groq": {"usage": {"prompt_tokens": 7, "completion_tokens": 5}},
                }
            ],
            Usage(7, output=5),
            3,
        ),
    ],
)
def test_an_answer_says_what_was_used(format, events, usage, text):
    if format == "openai-chat":
        events = [*events, {"choices": []}]
    meter = read(format, *events)
    assert (meter.usage, meter.text_bytes) == (usage, text)
    assert meter.settled_as == ("observed" if usage is None else "exact")


@pytest.mark.parametrize(
    ("rest", "whole", "settled_as"),
    [
        ([], False, "observed"),
        ([], True, "observed"),
        ([{"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}], False, "exact"),
        ([{"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": UNITS}}], False, "exact"),
    ],
)
def test_usage_in_an_event_of_its_own_is_the_last_word_of_a_complete_answer(rest, whole, settled_as):
    """It may be a running count, so that an answer that broke off after it may have cost more."""
    meter = AnswerMeter("cohere-chat-v2")
    delta = {"type": "content-delta", "delta": {"message": {"content": {"text": "abc"}}}}
    for event in [delta, {"type": "usage", "delta": {"usage": UNITS}}, *rest]:
        meter.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    meter.finish(whole)

    assert (meter.usage, meter.settled_as) == (Usage(7, output=5), settled_as)


def test_images_without_usage_are_not_settled_exactly():
    assert read("openai-images", {"data": [{"url": "x"}]}).settled_as == "observed"


SOUND = {
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 16},
        {"modality": "VIDEO", "tokenCount": 15_780},
        {"modality": "AUDIO", "tokenCount": 1_917},
    ]
}
CACHE = {
    "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 1_881}, {"modality": "VIDEO", "tokenCount": 15_483}]
}


@pytest.mark.parametrize(
    ("report", "usage"),
    [
        (
            {**SOUND, **CACHE, "cachedContentTokenCount": 17_379},
            DetailedUsage(1, 15_498, output=9, input_audio=36, input_video=297, cached_audio=1_881),
        ),
        # Without details of the cache, all that is new is taken for what is dearer.
        ({**SOUND, "cachedContentTokenCount": 17_379}, DetailedUsage(0, 17_379, output=9, input_audio=334)),
        (
            {"candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 8}]},
            DetailedUsage(17_713, output=1, output_image=8),
        ),
        ({"candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 99}]}, DetailedUsage(17_713, output_audio=9)),
        ({"candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": -1}, 7, {}]}, Usage(17_713, output=9)),
        ({"trafficType": "ON_DEMAND"}, Usage(17_713, output=9)),
        (
            {"trafficType": "ON_DEMAND_FLEX"},
            DetailedUsage(17_713, output=9, modifiers=("traffic_type=ON_DEMAND_FLEX",)),
        ),
    ],
)
def test_gemini_says_what_kind_its_tokens_are(report, usage):
    report = {"promptTokenCount": 17_713, "candidatesTokenCount": 9, **report}
    assert read("gemini", {"usageMetadata": report}).usage == usage


@pytest.mark.parametrize(
    ("model", "queries", "calls"),
    [
        ("gemini-3-flash", ["a", "b", "a", "", " "], 2),
        ("gemini-2.5-flash", ["a", "b"], 1),
        ("models/gemini-2.0-flash", [""], 0),
        ("other", ["a", "b"], 2),
    ],
)
def test_gemini_has_a_fee_for_each_different_query_and_before_version_3_for_each_prompt(model, queries, calls):
    candidate = {"groundingMetadata": {"webSearchQueries": queries}}
    body = {"modelVersion": model, "candidates": [candidate], "usageMetadata": {"promptTokenCount": 1}}
    assert read("gemini", body).usage.calls == calls
    assert read("gemini", body, body).usage.calls == calls


RESPONSE = {"input_tokens": 7, "output_tokens": 5}
MADE = {"image_gen": {"input_tokens": 2, "output_tokens": 90, "output_tokens_details": {"image_tokens": 90}}}


def test_images_made_by_a_tool_are_a_step_of_its_model():
    usage = read("openai-responses", {"usage": RESPONSE, "tool_usage": MADE}).usage
    assert (usage.all_input, usage.output, usage.output_image) == (9, 5, 90)
    (step,) = usage.steps
    assert (step.model, step.tool, step.usage.output_image) == (None, "image_generation", 90)
    tools = [{"type": "image_generation", "model": "gpt-image-2"}]
    assert ask("/v1/responses", {"model": "m", "input": "x", "tools": tools}).tool_models == {
        "image_generation": "gpt-image-2"
    }
    assert (
        read("openai-responses", {"usage": RESPONSE, "tool_usage": MADE, "tools": tools}).usage.steps[0].model
        == "gpt-image-2"
    )


def test_tools_without_a_report_have_other_rates_or_fees():
    image, code = {"type": "image_generation_call"}, {"type": "code_interpreter_call", "container_id": "c"}
    assert read("openai-responses", {"usage": RESPONSE, "output": [image]}).usage.other_rates
    done = [{"type": "response.output_item.done", "item": code}] * 2
    last = {"type": "response.completed", "response": {"usage": RESPONSE, "output": [code, code]}}
    assert read("openai-responses", *done, last).usage.containers == 1


@pytest.mark.parametrize(
    ("report", "cost", "other"),
    [
        ({"cost": 0.0001182}, 119, False),
        ({"cost": 2}, 2_000_000, False),
        ({"cost": 0.0002}, 200, False),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}}, 500_000, False),
        ({"cost": 0, "is_byok": True}, None, True),
        ({"cost": -1}, None, True),
        ({"cost": 1e300}, None, True),
        ({"cost": "1"}, None, True),
        ({"cost": True}, None, True),
    ],
)
def test_a_cost_is_read_exactly_or_marks_the_price(report, cost, other):
    usage = read("openai-chat", {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, **report}}).usage
    assert (getattr(usage, "cost", None), usage.other_rates) == (cost, other)


def test_claude_reports_steps_modifiers_and_an_hour_of_cache():
    message = {"type": "message", "input_tokens": 5, "output_tokens": 3}
    advisor = {"type": "advisor_message", "model": "opus", "input_tokens": 50, "output_tokens": 30}
    report = {"input_tokens": 10, "output_tokens": 6, "iterations": [message, advisor, message]}
    usage = read("anthropic-messages", {"usage": {**report, "speed": "fast", "inference_geo": "us"}}).usage
    assert (usage.input, usage.output, usage.modifiers) == (60, 36, ("speed=fast", "inference_geo=us"))
    assert [(step.model, step.usage.input) for step in usage.steps] == [(None, 5), ("opus", 50), (None, 5)]
    assert usage.beside_steps().all_input == 0
    written = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 9}
    hour = {"cache_creation": {"ephemeral_1h_input_tokens": 4, "ephemeral_5m_input_tokens": 5}}
    usage = read("anthropic-messages", {"usage": {**written, **hour}}).usage
    assert (usage.cache_write, usage.cache_write_1h) == (5, 4)
