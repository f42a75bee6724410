"""Requests to Bedrock and its answers, in the formats of its models."""

import json

import pytest

from enforcement.metering.amounts import MAX_COUNT, DetailedUsage, Usage
from enforcement.metering.answer import AnswerMeter
from enforcement.metering.formats.bedrock import InvokeAnswer
from enforcement.metering.request import Unmetered, read_request
from enforcement.metering.streams.meter import MessageMeter

HELLO = [{"role": "user", "content": [{"text": "Hello"}]}]
CONVERSE = "/model/amazon.nova-lite-v1%3A0/converse"
INVOKE = "/model/x/invoke"


def ask(path, body, cap=64):
    return read_request("POST", path, {}.get, json.dumps(body).encode(), default_cap=cap)


@pytest.mark.parametrize(
    ("path", "format", "model", "stream"),
    [
        (CONVERSE, "bedrock-converse", "amazon.nova-lite-v1:0", "false"),
        ("/model/a/converse-stream", "bedrock-converse", "a", "true"),
        ("/prefix/model/a/invoke-with-response-stream", "bedrock-invoke", "a", "true"),
        ("/model/amazon.titan-embed-text-v2:0/invoke", "bedrock-embeddings", "amazon.titan-embed-text-v2:0", "false"),
        (
            "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A0%3Ainference-profile%2Fus.x/converse",
            "bedrock-converse",
            "arn:aws:bedrock:us-east-1:0:inference-profile/us.x",
            "false",
        ),
    ],
)
def test_the_path_names_the_model(path, format, model, stream):
    """An ARN may be written with an escaped slash."""
    body = {"inputText": "x"} if "embed" in path else {"messages": HELLO, "inferenceConfig": {}}
    asked = ask(path, body)
    assert (asked.format, asked.attributes) == (format, {"model": model, "stream": stream})


@pytest.mark.parametrize(
    "path", ["/model//converse", "/model/converse", "/model/a/b/../converse", "/models/a/converse"]
)
def test_other_paths_have_no_format(path):
    assert ask(path, {"messages": HELLO}) == Unmetered("format", is_lookalike="/../" in path)


@pytest.mark.parametrize(
    ("path", "body", "cap", "changes", "text"),
    [
        (CONVERSE, {"messages": HELLO}, 64, {"/inferenceConfig/maxTokens": 64}, 5),
        (CONVERSE, {"messages": HELLO, "inferenceConfig": {"maxTokens": 9}}, 9, {}, 5),
        # The model may take a cap from what is passed on to it.
        (
            CONVERSE,
            {
                "messages": HELLO,
                "inferenceConfig": {"maxTokens": 9},
                "additionalModelRequestFields": {"max_tokens": 99},
            },
            99,
            {},
            5,
        ),
        (
            INVOKE,
            {"anthropic_version": "x", "max_tokens": 7, "system": "Be", "messages": [{"content": "Hello"}]},
            7,
            {},
            7,
        ),
        (INVOKE, {"messages": HELLO}, 64, {"/inferenceConfig/maxTokens": 64}, 5),
        (INVOKE, {"messages": HELLO, "inferenceConfig": {"max_new_tokens": 9}}, 9, {}, 5),
        (INVOKE, {"messages": [{"role": "user", "content": "Hello"}]}, 64, {"/max_tokens": 64}, 5),
        (INVOKE, {"inputText": "Hello"}, 64, {"/textGenerationConfig/maxTokenCount": 64}, 5),
        (INVOKE, {"inputText": "Hello", "normalize": True}, 0, {}, 5),
        (INVOKE, {"prompt": "Hello", "max_gen_len": 9}, 9, {}, 5),
        (INVOKE, {"message": "Hello", "chat_history": [{"role": "USER", "message": "Hi"}]}, 64, {"/max_tokens": 64}, 7),
        ("/model/cohere.embed-v4:0/invoke", {"texts": ["Hel", "lo"], "images": ["data:x"]}, 0, {}, 5),
        ("/model/amazon.nova-2-embed/invoke", {"singleEmbeddingParams": {"text": {"value": "Hello"}}}, 0, {}, 5),
    ],
)
def test_a_request_has_the_cap_and_the_text_of_its_format(path, body, cap, changes, text):
    asked = ask(path, body)
    assert (asked.cap, asked.changes, asked.text_bytes) == (cap, changes, text)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CONVERSE, {"messages": HELLO, "inferenceConfig": 7}, "bad_cap"),
        (CONVERSE, {"messages": HELLO, "inferenceConfig": {"maxTokens": "9"}}, "bad_cap"),
        (CONVERSE, {"messages": HELLO, "additionalModelRequestFields": [1]}, "bad_cap"),
        (INVOKE, {"inputText": "x", "textGenerationConfig": {"maxTokenCount": 1.5}}, "bad_cap"),
        (INVOKE, {"textToImageParams": {"text": "a horse"}}, "format"),
        (INVOKE, {}, "format"),
        (CONVERSE, {"messages": HELLO, "InferenceConfig": {"maxTokens": 9}}, "duplicate_key"),
    ],
)
def test_what_cannot_be_read_is_unmetered(path, body, reason):
    assert ask(path, body).reason == reason


def test_blocks_count_as_what_they_are():
    tool = {"toolUse": {"name": "ab", "input": {"c": "d"}}}
    result = {
        "toolResult": {"content": [{"text": "efg"}, {"json": {"h": "i"}}, {"image": {"source": {"bytes": "xx"}}}]}
    }
    texts = [{"guardContent": {"text": {"text": "jk"}}}, {"reasoningContent": {"reasoningText": {"text": "l"}}}]
    media = [{"document": {"name": "m", "source": {"bytes": "xx"}}}, {"document": {"source": {"text": "no"}}}]
    odd = [{"cachePoint": {"type": "default"}}, {"hologram": {}}, {"searchResult": {"content": [{"text": "p"}]}}]
    body = {"system": [{"text": "q"}], "messages": [{"content": [tool, result, *texts, *media, *odd]}]}
    asked = ask(CONVERSE, {**body, "toolConfig": {"tools": [{"toolSpec": {"name": "rs"}}]}})
    assert asked.text_bytes == 4 + 5 + 3 + 3 + 1 + 1 + 6
    assert asked.parts == {"image": 1, "file": 1, "other": 1}
    assert asked.added_tokens > 0
    assert asked.unbounded == ""
    assert "tool" in ask(CONVERSE, {"messages": HELLO, "toolConfig": {"tools": [{"systemTool": {}}]}}).unbounded
    assert ask(CONVERSE, {"messages": HELLO, "promptVariables": {}}).keeps_context
    assert "no cap" in ask(INVOKE, {"prompt": "x"}).unbounded


def read(body, format="bedrock-invoke", head=None):
    meter = AnswerMeter(format)
    meter.read_head((head or {}).get)
    meter.feed(json.dumps(body).encode())
    meter.finish()
    return meter


def converse(**usage):
    return {
        "output": {"message": {"content": [{"text": "abc"}]}},
        "usage": {"inputTokens": 9, "outputTokens": 2, **usage},
    }


@pytest.mark.parametrize(
    ("more", "usage"),
    [
        ({}, Usage(9, output=2)),
        ({"cacheReadInputTokens": 5, "cacheReadInputTokenCount": 5}, Usage(9, 5, output=2)),
        ({"cacheWriteInputTokens": 5, "cacheDetails": [{"ttl": "5m", "inputTokens": 5}]}, Usage(9, 0, 5, 2)),
        (
            {"cacheWriteInputTokens": 5, "cacheDetails": [{"ttl": "1h", "inputTokens": 3}]},
            DetailedUsage(9, 0, 2, 2, cache_write_1h=3),
        ),
        ({"inputTokens": -1}, None),
        ({"inputTokens": 1.5}, None),
        ({"serverToolUsage": {"searches": 1}}, Usage(9, output=2, other_rates=True)),
    ],
)
def test_converse_reports_each_class_apart(more, usage):
    meter = read(converse(**more), "bedrock-converse")
    assert (meter.usage, meter.text_bytes) == (usage, 3)
    assert meter.settled_as == ("observed" if usage is None else "exact")


def test_tiers_and_guardrails_have_other_rates():
    body = {**converse(), "serviceTier": {"type": "priority"}, "performanceConfig": {"latency": "optimized"}}
    assert read(body, "bedrock-converse").usage.modifiers == ("service_tier=priority", "latency=optimized")
    assert read({**converse(), "trace": {"guardrail": {"x": 1}}}, "bedrock-converse").usage.other_rates


HEAD = {"x-amzn-bedrock-input-token-count": "9", "x-amzn-bedrock-output-token-count": "2"}


@pytest.mark.parametrize(
    ("body", "head", "usage", "settled_as"),
    [
        (
            {"type": "message", "content": [], "usage": {"input_tokens": 9, "output_tokens": 2}},
            {},
            Usage(9, output=2),
            "exact",
        ),
        (converse(), {}, Usage(9, output=2), "exact"),
        ({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}, {}, Usage(9, output=2), "exact"),
        (
            {"inputTextTokenCount": 9.0, "results": [{"tokenCount": 1.0}, {"tokenCount": 1}]},
            {},
            Usage(9, output=2),
            "exact",
        ),
        ({"embedding": [0.1], "inputTextTokenCount": 9}, {}, Usage(9), "exact"),
        ({"generation": "abc", "prompt_token_count": 9, "generation_token_count": 2}, {}, Usage(9, output=2), "exact"),
        ({"embeddings": [[0.1]], "response_type": "x"}, {"x-amzn-bedrock-input-token-count": "9"}, Usage(9), "exact"),
        ({"outputs": [{"text": "abc"}]}, HEAD, Usage(9, output=2), "exact"),
        # A part of a report is completed by the head, and without it the text is what is known.
        ({"output": {}, "usage": {"inputTokens": 9}}, HEAD, Usage(9, output=2), "exact"),
        ({"output": {}, "usage": {"inputTokens": 9}}, {}, Usage(9), "observed"),
        ({"outputs": [{"text": "abc"}]}, {"x-amzn-bedrock-input-token-count": "1e3"}, None, "observed"),
        ({"outputs": [{"text": "abc"}]}, {}, None, "observed"),
    ],
)
def test_invoke_is_read_by_the_format_of_its_model_or_by_its_head(body, head, usage, settled_as):
    meter = read(body, head=head)
    assert (meter.usage, meter.settled_as) == (usage, settled_as)


@pytest.mark.parametrize("name", ["max_gen_len", "max_new_tokens", "max_tokens"])
def test_converse_has_one_cap_which_others_only_raise(name):
    """A model that does not know the other name gets the cap all the same."""
    for holder in ("inferenceConfig", "additionalModelRequestFields"):
        asked = ask(CONVERSE, {"messages": HELLO, holder: {name: 9}})
        assert (asked.cap, asked.changes) == (9, {"/inferenceConfig/maxTokens": 9})
        assert json.loads(asked.body)["inferenceConfig"]["maxTokens"] == 9
    native = ask(INVOKE, {"messages": HELLO, "inferenceConfig": {name: 9}})
    assert native.changes == ({} if name == "max_new_tokens" else {"/inferenceConfig/maxTokens": 9})
    raised = ask(CONVERSE, {"messages": HELLO, "inferenceConfig": {"maxTokens": 5, name: 9}})
    assert (raised.cap, raised.changes) == (9, {})


@pytest.mark.parametrize(
    ("body", "cap"),
    [
        ({"inputText": "x", "dimensions": None}, 64),
        ({"inputText": None, "prompt": "x", "max_gen_len": 9}, 9),
        ({"messages": [{"content": "x"}], "max_tokens": 9, "anthropic_version": None, "toolConfig": None}, 9),
        ({"prompt": "x", "anthropic_version": "y", "max_tokens_to_sample": 9}, 9),
    ],
)
def test_a_field_that_is_null_names_no_format(body, cap):
    assert ask(INVOKE, body).cap == cap


def test_a_stream_of_llama_is_charged_by_its_last_count():
    """Each event counts the tokens so far, and only the last one says why it is the last."""
    events = [{"generation": "a", "prompt_token_count": 7, "generation_token_count": 1, "stop_reason": None},
              {"generation": "b", "prompt_token_count": None, "generation_token_count": 2}]  # fmt: skip
    reader = InvokeAnswer()
    for event in events:
        reader.read_event(event)
    reader.end()
    assert (reader.usage.output, reader.is_final) == (2, False)
    reader.read_event({"generation": "c", "generation_token_count": 3, "stop_reason": "stop"})
    assert (reader.usage, reader.is_final) == (Usage(7, output=3), True)


def test_counts_that_no_class_can_have_together_are_not_added_up_beyond_it():
    reader = InvokeAnswer()
    reader.read_body({"inputTextTokenCount": 5, "results": [{"tokenCount": MAX_COUNT, "outputText": "a"}] * 3})
    assert reader.usage == Usage(5, output=MAX_COUNT)


@pytest.mark.parametrize(("kind", "is_final"), [("event", True), ("exception", False)])
def test_an_exception_after_running_usage_leaves_no_last_word(kind, is_final):
    reader = InvokeAnswer()
    meter = MessageMeter(reader)
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    event = {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}], "usage": usage}
    reader.read_event(event)
    meter.reader_for({":message-type": kind, ":event-type": "x"})(b"{}")
    reader.end()
    assert reader.is_final is is_final
