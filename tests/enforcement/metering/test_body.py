"""Properties of requests that are read once, strictly, and sent on with few changes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement.metering.body import MAX_CONTAINERS, MAX_DEPTH, parse, value_at, write_values
from enforcement.metering.request import MeteredRequest, Unmetered, read_request
from tests.scale import scale

CHAT = "/v1/chat/completions"
NUMBERS = st.sampled_from(["0", "-0", "1.0", "1e2", "0.10", "123456789012345678901234567890", "1E-7", "-0.0"])
STRINGS = st.text(st.sampled_from('ab{}[]",:\\/\n\té漢😀'), max_size=5).map(json.dumps)
BLANKS = st.sampled_from(["", " ", "\r\n\t "])


def read(body, path=CHAT, header=None, **options):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_request(options.pop("method", "POST"), path, (header or {}).get, data, **options)


def chat(**fields):
    return {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}


def joined(parts, begin, end, blank):
    return begin + blank + f"{blank},{blank}".join(parts) + blank + end


@st.composite
def objects(draw, values):
    """Draw the JSON text of an object."""
    keys = draw(st.lists(st.sampled_from(["a", "b", "stream_options", 'k"\\', "é"]), unique=True, max_size=4))
    blank = draw(BLANKS)
    return joined([f"{json.dumps(key)}{blank}:{blank}{draw(values)}" for key in keys], "{", "}", blank)


VALUES = st.recursive(
    NUMBERS | STRINGS | st.sampled_from(["null", "true"]),
    lambda inner: st.one_of(
        st.builds(lambda parts, blank: joined(parts, "[", "]", blank), st.lists(inner, max_size=3), BLANKS),
        objects(inner),
    ),
    max_leaves=8,
)


def exactly(data):
    """Return JSON with the text of its numbers and the order of its keys."""
    return json.loads(data, parse_int=lambda text: ["n", text], parse_float=lambda text: ["n", text])


POINTERS = ["/new", "/a", "/new/x", "/stream_options/a"]


# One body for all of them: Hypothesis takes much longer to draw one than we to read it.
@pytest.mark.proof
@settings(max_examples=scale(60, 10_000), deadline=None)
@given(text=objects(VALUES), mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\r\n "]), new=st.sampled_from([7, True]))
def test_a_written_value_changes_nothing_else(text, mark, new):
    """Numbers keep their digits, keys their order, and all other bytes stay."""
    for pointer in POINTERS:
        judge_written(pointer, text, mark, new)


def judge_written(pointer, text, mark, new):
    body = mark + text.encode()
    value = json.loads(text)
    way = pointer.split("/")[1:]
    if len(way) == 2 and not isinstance(value.get(way[0], None), dict | None):
        with pytest.raises(ValueError, match=f"{way[0]}: must be an object"):
            write_values(body, value, {pointer: new})
        return

    written = write_values(body, value, {pointer: new})

    assert written.startswith(mark)
    after, before = exactly(written[len(mark) :]), exactly(text)
    inner = after if len(way) == 1 else after[way[0]]
    assert inner[way[-1]] == (new if new is True else ["n", "7"])
    old = before if len(way) == 1 else before.get(way[0]) or {}
    assert list(inner) == [*old, *(way[-1:] if way[-1] not in old else [])]
    assert {key: inner[key] for key in old if key != way[-1]} == {key: old[key] for key in old if key != way[-1]}
    assert {key: after[key] for key in before if key != way[0]} == {k: before[k] for k in before if k != way[0]}


PREFIXES = ["", CHAT, "/v1/responses", "/v1/messages", "/models/m:generateContent", "/v1/completions"]


@pytest.mark.proof
@settings(max_examples=scale(60, 10_000), deadline=None)
@given(body=st.one_of(st.binary(max_size=40), objects(VALUES).map(str.encode)), path=st.text(max_size=20))
def test_no_body_and_no_path_raise(body, path):
    """Whatever a client sends is metered or has a reason."""
    for target in (*PREFIXES, *(prefix + path for prefix in PREFIXES)):
        found = read(body.replace(b'"a"', b'"model"'), target, default_cap=5)
        assert isinstance(found, MeteredRequest | Unmetered), target


SHAPES = [None, True, 7, 1.5, "text", [], {}, [None], [[1]], [{}], {"type": []}, [{"type": {}, "text": 1}], {"a": {}}]
FIELDS = {
    CHAT: ["messages", "tools", "response_format", "n", "max_tokens", "stream", "stream_options", "metadata"],
    "/v1/responses": ["input", "instructions", "text", "prompt", "conversation", "tools", "stream_options"],
    "/v1/completions": ["prompt", "suffix", "best_of"],
    "/v1/embeddings": ["input"],
    "/v1/messages": ["messages", "system", "tools", "metadata"],
    "/models/m:generateContent": ["contents", "systemInstruction", "generationConfig", "generation_config", "tools"],
    "/mcp": ["params", "method", "jsonrpc", "metadata"],
}
INNER = ["content", "parts", "tool_calls", "function_call", "function", "source", "type", "input", "output", "summary"]


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_a_value_of_the_wrong_shape_is_no_error(path, shape):
    """It counts nothing, or makes the request unmetered."""
    for field in FIELDS[path]:
        for value in (shape, [{name: shape} for name in INNER], [{"content": [{name: shape}]} for name in INNER]):
            body = {"jsonrpc": "2.0", "model": "m", field: value}
            assert isinstance(read(body, path, default_cap=5), MeteredRequest | Unmetered)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model":"a","model":"b"} and more', "duplicate_key"),
        (b'{"x":NaN,"m":{"a":1,"a":2}}', "duplicate_key"),
        (b'{"a":1,"a":"\xff"}', "duplicate_key"),
        (b'{"model":"m","x":NaN}', "invalid_json"),
        (b'{"model":"m","x":-Infinity}', "invalid_json"),
        (b'{"model":"m","x":1e999}', "invalid_json"),
        (b'{"model":"m","x":' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "invalid_json"),
        (b'{"model":"m","messages":[' + b"{}," * MAX_CONTAINERS + b"{}]}", "invalid_json"),
        (b'{"model":"m","messages":[' + b"[]," * MAX_CONTAINERS + b"[]]}", "invalid_json"),
        (b"\xff\xfe{\x00}\x00", "invalid_json"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"model":"m"}', "invalid_json"),
        (b"", "invalid_json"),
        (b"[1]", "not_an_object"),
        (b'{"model":"\\ud83d"}', "no_model"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_body_that_two_readers_could_read_in_two_ways_is_refused(body, reason):
    """A key that occurs twice is named before any other fault."""
    assert read(body) == Unmetered(reason, "openai-chat")


def test_brackets_inside_strings_are_no_objects():
    assert isinstance(read(b'{"model":"m","x":"' + b'[{\\"' * MAX_CONTAINERS + b'"}'), MeteredRequest)


def test_brackets_inside_strings_are_no_levels():
    """The deepest body that is allowed is read, whatever its strings contain."""
    text = '"' + '[{\\"' * 500 + '"'
    body = b'{"model":"m","x":' + b"[" * (MAX_DEPTH - 1) + text.encode() + b"]" * (MAX_DEPTH - 1) + b"}"

    assert isinstance(read(body), MeteredRequest)
    assert parse(b"[" + b"[]," * 1000 + b"[]]").fault == ""


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("/v1/chat%2Fcompletions", "openai-chat"),
        ("/v1/ch%61t/completions", "openai-chat"),
        ("/v1/chat/completions%3Fx", None),
        ("/v1/ch%2561t/completions", "openai-completions"),
        ("/v1/Chat/completions", None),
        ("/v1/chat/x/../completions", None),
        ("/openai/deployments/cheap/%2E%2E/dear/chat/completions", None),
        ("/v1/./embeddings", None),
        ("/v1/chat/completions#/embeddings", None),
        ("/openai/deployments/cheap/..%5Cdear/chat/completions", None),
        ("/openai/deployments/cheap/..;/dear/chat/completions", None),
        ("/OpenAI/deployments/dear/chat/completions", None),
        ("/openai/deployments/chat/completions", None),
        ("/openai/deployments/cheap/dear/chat/completions", None),
        ("/openai/deployments/cheap/dear/extensions/chat/completions", None),
        ("/openai/deployments/cheap/v1/messages", None),
        ("/api/v4/async/chat/completions", None),
        ("/v1/messages/count_tokens", "anthropic-count"),
        ("/messages", None),
        ("/proxy/v1/messages/", "anthropic-messages"),
        ("/models/embeddings", "openai-embeddings"),
        ("/models/a:b:generateContent", "gemini"),
        ("/models/m:countTokens", "gemini-count"),
        ("/openai/deployments/d/embeddings", "openai-embeddings"),
        ("", None),
        ("/", None),
    ],
)
def test_the_end_of_the_path_names_the_format(path, format):
    """Escapes are read once, and any prefix may stand before it."""
    assert read({"model": "m"}, path, default_cap=1).format == format


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/openai/deployments/d/extensions/chat/completions", "d"),
        ("/x/openai/deployments/a/openai/deployments/b/completions", "b"),
        ("/deployments/d/chat/completions", "m"),
        ("/models/a:b:generateContent", "a:b"),
    ],
)
def test_the_path_may_name_the_model(path, model):
    """Azure's deployments and Gemini's models go before what the body says."""
    assert read({"model": "m"}, path).attributes["model"] == model


def test_a_call_of_a_tool_has_no_tokens_to_count():
    """Also one with the fields of a chat: a limit on tokens has to treat it as unmetered."""
    found = read({"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "t"}, **chat()}, "/v1/images")

    assert (found.format, found.has_tokens, found.text_bytes) == ("mcp", False, 0)
    assert read(chat()).has_tokens


@pytest.mark.parametrize(
    "body", [b'{"jsonrpc":"2.0","params":{"name":"a","name":"b"}}', b'[{"jsonrpc":"2.0","id":1,"id":1}]']
)
def test_a_call_with_a_key_twice_is_unmetered(body):
    """It is a call, and not merely an unknown format."""
    assert read(body, "/mcp") == Unmetered("duplicate_key", "mcp")


@pytest.mark.parametrize(
    ("header", "metadata", "session"),
    [
        ({"mcp-session-id": "a"}, {"session_id": "b"}, "a"),
        ({"sluicegate-session": "", "mcp-session-id": "a"}, None, "a"),
        ({"sluicegate-session": "x" * 128}, None, "x" * 128),
        ({"sluicegate-session": "x" * 129}, None, None),
        ({}, {"session_id": ""}, None),
        ({}, {"session_id": "\ud83d"}, None),
    ],
)
def test_a_session_has_1_to_128_characters(header, metadata, session):
    """The header goes before the body."""
    assert read(chat(metadata=metadata), header=header).attributes.get("session") == session


@pytest.mark.parametrize(
    ("fields", "path", "cap", "expected"),
    [
        ({"max_tokens": 50, "max_completion_tokens": 80}, CHAT, 60, {"/max_tokens": 50, "/max_completion_tokens": 60}),
        ({"max_tokens": 50, "max_completion_tokens": 80}, CHAT, 10, {"/max_tokens": 10, "/max_completion_tokens": 10}),
        ({}, CHAT, 10, {"/max_completion_tokens": 10}),
        (
            {"generation_config": {"max_output_tokens": 90}},
            "/models/m:generateContent",
            5,
            {"/generation_config/max_output_tokens": 5},
        ),
    ],
)
def test_a_cap_is_lowered_wherever_it_is_greater(fields, path, cap, expected):
    """Caps that are lower already stay, and so does the request itself."""
    found = read(chat(**fields), path, default_cap=100)
    lowered = found.with_cap(cap)

    value = json.loads(lowered.body)
    assert {pointer: value_at(value, pointer) for pointer in expected} == expected
    assert (lowered.cap, lowered.n, lowered.attributes) == (cap, found.n, found.attributes)
    assert read(lowered.body, path).cap == cap


def test_a_cap_is_never_raised():
    """A cap above that of the request is an error of the program."""
    with pytest.raises(ValueError, match="from 0 to the cap of the request, 5, got 6"):
        read(chat(max_tokens=5)).with_cap(6)


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        (CHAT, "/max_completion_tokens"),
        ("/v1/completions", "/max_tokens"),
        ("/v1/responses", "/max_output_tokens"),
        ("/v1/messages", "/max_tokens"),
        ("/models/m:generateContent", "/generationConfig/maxOutputTokens"),
    ],
)
def test_a_default_cap_can_be_written_once_the_model_is_known(path, pointer):
    """As it is if the default is known from the beginning; and it can be lowered afterwards."""
    found = read(chat(), path)

    assert found.cap is None
    assert found.with_cap(9) == read(chat(), path, default_cap=9)
    assert found.with_cap(9).with_cap(3).changes == {pointer: 3}
    assert read(chat(), "/v1/embeddings").with_cap(0).changes == {}


@pytest.mark.parametrize(
    ("body", "path", "keeps_context", "is_background"),
    [
        ({"input": "Hi"}, "/v1/responses", False, False),
        ({"previous_response_id": "resp_1"}, "/v1/responses", True, False),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "/v1/responses", True, False),
        ({"prompt": {"id": "pmpt_1"}}, "/v1/responses", True, False),
        ({"background": True}, "/v1/responses", False, True),
        ({"background": "true"}, "/v1/responses", False, True),
        ({"background": False}, "/v1/responses", False, False),
        ({"cachedContent": "cachedContents/1"}, "/models/m:generateContent", True, False),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, CHAT, True, False),
    ],
)
def test_what_the_estimate_cannot_know_is_said(body, path, keeps_context, is_background):
    """The provider keeps or fetches some of the context, or goes on after its answer."""
    found = read({"model": "m", **body}, path)

    assert (found.keeps_context, found.is_background) == (keeps_context, is_background)


@pytest.mark.parametrize(
    ("path", "body", "text_bytes", "parts"),
    [
        (CHAT, {"messages": [{"tool_calls": [{"custom": {"name": "ab", "input": "cde"}}], "role": "x"}]}, 5, {}),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "ab"}, "c", {"type": "new"}, 7]}]}, 3, {"other": 1}),
        (CHAT, {"tools": [{"function": {"name": "é", "strict": True}}], "functions": ["ab"]}, 22, {}),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "ab"}}}, 6, {}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 0, {"image": 1}),
        (CHAT, {"messages": [{"content": [{"image_url": {"url": "https://x/h.png"}}]}]}, 0, {"image": 1}),
        (CHAT, {"messages": [{"content": [{"video_url": "https://x/v.mp4", "text": "ab"}]}]}, 2, {"video": 1}),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, 3, {}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": "abc"}]}, 3, {}),
        ("/v1/responses", {"input": [{"type": "reasoning", "encrypted_content": "abc"}]}, 0, {}),
        ("/v1/responses", {"text": {"format": {"name": "x", "schema": {"a": ["b"]}}}}, 2, {}),
        ("/v1/completions", {"prompt": ["ab", "c"], "suffix": "d"}, 4, {}),
        ("/v1/embeddings", {"input": [1, 2, 3]}, 12, {}),
        (
            "/v1/messages",
            {
                "messages": [
                    {
                        "content": [
                            {"type": "thinking", "thinking": "ab", "signature": "xxxx"},
                            {"type": "redacted_thinking", "data": "xxxx"},
                            {"type": "tool_use", "name": "f", "input": {"k": "v"}},
                            {"type": "tool_result", "content": [{"type": "text", "text": "abc"}, {"type": "image"}]},
                            {"type": "document", "source": {"type": "text", "data": "abcd"}},
                            {"type": "document", "source": {"type": "base64", "data": "xxxx"}},
                        ]
                    }
                ]
            },
            12,
            {"image": 1, "file": 1},
        ),
        # Without a type it may be a video.
        (
            "/models/m:generateContent",
            {"contents": [{"parts": [{"fileData": {"fileUri": "https://x/v"}}, {"inlineData": {"mimeType": ""}}]}]},
            0,
            {"other": 2},
        ),
        (
            "/v1/messages",
            {
                "messages": [
                    {
                        "content": [
                            {
                                "type": "web_fetch_tool_result",
                                "content": {
                                    "type": "web_fetch_result",
                                    "url": "ab",
                                    "content": {"type": "document", "source": {"type": "base64", "data": "x" * 99}},
                                },
                            },
                            {"type": "tool_result", "content": {"type": "image", "source": {"url": "https://x/h.png"}}},
                            {"type": "tool_result", "content": {"type": "file", "file_id": "f"}},
                            {"type": "tool_result", "content": {"source": {"url": "https://x/h.png"}}},
                            {"type": "bash_code_execution_tool_result", "content": {"stdout": "cd", "type": {}}},
                        ]
                    }
                ]
            },
            44,
            {"file": 2, "image": 1, "other": 1},
        ),
        (
            "/models/m:generateContent",
            {
                "contents": [
                    {
                        "parts": [
                            {"text": "ab", "thought": True},
                            {"inline_data": {"mime_type": "IMAGE/png", "data": "xxxx"}},
                            {"fileData": {"mimeType": "application/pdf"}},
                            {"functionCall": {"name": "f", "args": {"k": "v"}}},
                            {"functionResponse": {"name": "f", "response": {"r": "s"}}},
                            {"executableCode": {"code": "x=1"}},
                            {"new": 1},
                        ]
                    }
                ]
            },
            11,
            {"image": 1, "file": 1, "other": 1},
        ),
    ],
)
def test_text_and_parts_are_counted(path, body, text_bytes, parts):
    """Names, ids and data of other media are no text."""
    found = read({"model": "m", **body}, path)

    assert (found.text_bytes, found.parts) == (text_bytes, parts)


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"models": ["m", "dear"]}, CHAT),
        ({"models": "dear"}, CHAT),
        ({"fallbacks": [{"m": ["dear"]}]}, CHAT),
        ({"fallback_models": ["dear"]}, CHAT),
        ({"Models": ["dear"]}, CHAT),
        ({"model": "m,dear"}, CHAT),
        ({}, "/engines/dear/chat/completions"),
        ({}, "/engines/m/x/embeddings"),
    ],
)
def test_a_request_that_names_several_models_is_unmetered(more, path):
    """The price is that of the one in ``model``, and another one might answer."""
    assert read({"model": "m", **more}, path).reason in ("batch", "duplicate_key")


@pytest.mark.parametrize("more", [{"models": []}, {"models": ["m"], "fallbacks": None}, {"fallback_models": ["m"]}])
@pytest.mark.parametrize("path", [CHAT, "/engines/m/chat/completions", "/engines/chat/completions"])
def test_a_model_may_be_named_twice(more, path):
    assert read({"model": "m", **more}, path).attributes["model"] == "m"


@pytest.mark.parametrize(("value", "is_background"), [(True, True), ("true", True), (False, False), (None, False)])
def test_a_deferred_chat_goes_on_after_its_answer(value, is_background):
    assert read({"model": "m", "deferred": value}).is_background is is_background


@pytest.mark.parametrize(
    "body",
    [
        {"generation_config": {"max_output_tokens": 1}, "generationConfig": {}},
        {"contents": [{"parts": [{"fileData": {"mimeType": "image/png", "mime_type": "video/mp4"}}]}]},
    ],
)
def test_both_spellings_of_a_name_are_refused(body):
    """A server takes one of them."""
    assert read(body, "/models/m:generateContent").reason == "duplicate_key"


def test_the_cap_is_also_written_where_the_server_reads_it():
    found = read(chat(max_completion_tokens=7), cap_field="max_tokens")
    assert (found.cap, found.changes) == (7, {"/max_tokens": 7})
    assert json.loads(found.with_cap(5).body) == chat(max_completion_tokens=5, max_tokens=5)
    assert read(chat(max_tokens=7), cap_field="max_tokens").changes == {}
    assert read(chat(max_completion_tokens=7)).changes == {}
    # OpenAI takes one of them.
    assert read(chat(max_tokens=7), cap_field="max_completion_tokens").changes == {}


def test_each_body_is_read_by_itself():
    """Marks for a cache are found in any spelling of JSON, and nothing is left of a body for the next one."""
    marked = b'[{"a": {"cache\\u005fcontrol": 1}}, {"cachePoint": {}}]'
    assert (parse(marked).has_marks, parse(marked).objects) == (True, 4)
    assert parse(b'{"a": "cache_control", "b": {"a": 1, "a": 2}}').fault == "duplicate_key"
    assert parse(b'{"cachePoint": {}').fault == "invalid_json"
    assert (parse(b'{"a": "cachePoint"}').has_marks, parse(b'{"a": "cachePoint"}').objects) == (False, 1)
