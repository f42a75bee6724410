"""With ``estimate: bound`` each byte that a provider may charge counts, and what has no bound is refused."""

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcement.metering.estimate import MESSAGE_TOKENS
from enforcement.metering.formats.text import PROMPT_TOKENS
from enforcement.metering.opening import RefusedOpening, open_request
from enforcement.metering.prices import Prices
from enforcement.metering.request import read_request
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering
from tests.enforcement.metering.fleet import examples

TPM = Limit(name="tpm", unit="tokens", quota=10**9, window_seconds=60)
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
GEMINI = "/v1beta/models/m:generateContent"
HELLO = [{"role": "user", "content": "Hi"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"k": 1}'}}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}}

# One request of each format with every kind of text that it knows, and an image.
BODIES = {
    CHAT: {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "out", "schema": SCHEMA}},
    },
    RESPONSES: {
        "instructions": "Be kind.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            {"type": "reasoning", "summary": [], "encrypted_content": "AAAA"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "text": {"format": {"type": "json_schema", "name": "out", "schema": SCHEMA}},
    },
    MESSAGES: {
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                    {"type": "document", "title": "News", "source": {"type": "text", "data": "Rain"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "So", "signature": "AAAA"},
                    {"type": "redacted_thinking", "data": "AAAA"},
                    {"type": "tool_use", "id": "call_1", "name": "f", "input": {"k": "v"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}]},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
    },
    GEMINI: {
        "systemInstruction": {"parts": [{"text": "Be kind."}]},
        "contents": [
            {"parts": [{"text": "Hi"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
            {"parts": [{"functionCall": {"name": "f", "args": {"k": "v"}}, "thoughtSignature": "AAAA"}]},
            {"parts": [{"functionResponse": {"name": "f", "response": {"r": "sunny"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parameters": SCHEMA}]}],
        "generationConfig": {"responseSchema": SCHEMA},
    },
}
# What holds the data of an image or its address.
MEDIA = {("image_url",), ("image_url", "url"), ("source", "data"), ("inlineData", "data")}


def opened(path, body, **parts):
    """Return what the request is charged, or why it is refused."""
    data = json.dumps({"model": "m", **body}, ensure_ascii=False, separators=(",", ":")).encode()
    asked = read_request("POST", path, lambda name: None, data)
    return open_request(asked, [TPM], Metering("bound", 10, parts or {"image": 100}), Prices(1), 0)


def places(value, path=()):
    """Yield the way to each object and each string of a JSON value."""
    if isinstance(value, dict | list):
        if isinstance(value, dict):
            yield path, value
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))
    elif isinstance(value, str):
        yield path, value


def is_media(path, body):
    """Return whether a string is the data of an image."""
    words = tuple(key for key in path if isinstance(key, str))
    documents = "source" in words and "document" in json.dumps(at(body, path[:-2]))
    return not documents and any(words[-len(media) :] == media for media in MEDIA)


def at(value, path):
    for key in path:
        value = value[key]
    return value


@examples(100)
@given(st.sampled_from(sorted(BODIES)), st.data())
def test_each_byte_of_text_counts_wherever_it_stands(path, data):
    """Also in fields that no meter knows: another server, or a later model, may read them."""
    body = copy.deepcopy(BODIES[path])
    where, found = data.draw(st.sampled_from([place for place in places(body) if not is_media(place[0], body)]))
    text = data.draw(st.text('a "é中😀', min_size=1, max_size=200))
    before = opened(path, body).estimate.input
    if isinstance(found, dict):
        key = data.draw(st.sampled_from(["note", "name", "context", "extra"]))
        if key in found:
            return
        found[key] = text
    elif where[-1] in ("type", "role"):
        return
    else:
        at(body, where[:-1])[where[-1]] = found + text
    after = opened(path, body)

    # A field may also make a part one of an unknown kind.
    assert isinstance(after, RefusedOpening) or after.estimate.input >= before + len(text.encode())


@pytest.mark.parametrize("path", sorted(BODIES))
def test_the_data_of_a_part_counts_as_its_constant(path):
    """Its size is no measure of its tokens."""
    body = BODIES[path]
    small, large = (json.loads(json.dumps(body).replace("AAAA", "A" * size, 1)) for size in (4, 40_000))
    if path == MESSAGES:  # the first one is the image
        assert large["messages"][0]["content"][0]["source"]["data"] == "A" * 40_000
    assert opened(path, large).estimate.input == opened(path, small).estimate.input


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_part_without_a_constant_is_refused(path):
    refused = opened(path, BODIES[path], audio=1)
    assert isinstance(refused, RefusedOpening)
    assert "part_tokens: must have a number for image" in refused.detail


def test_a_text_beside_the_data_of_an_image_counts():
    """Some servers read it."""
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}, "text": "x" * 5_000}
    assert opened(CHAT, {"messages": [{"role": "user", "content": [image]}]}).estimate.input > 5_100


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        (CHAT, {"messages": HELLO, "tools": [{"type": "web_search"}]}, "tool 'web_search'"),
        (CHAT, {"messages": HELLO, "web_search_options": {}}, "web_search_options"),
        (CHAT, {"messages": HELLO, "data_sources": [{"type": "azure_search"}]}, "data_sources"),
        (CHAT, {"messages": HELLO, "plugins": [{"id": "web"}]}, "plugins"),
        (CHAT, {"messages": HELLO, "search_parameters": {"mode": "on"}}, "search_parameters"),
        (CHAT, {"messages": HELLO, "prediction": {"type": "content", "content": "Hi"}}, "beyond the cap"),
        (RESPONSES, {"input": "Hi", "tools": [{"type": "file_search"}]}, "tool 'file_search'"),
        (RESPONSES, {"input": "Hi", "tools": [{"type": "mcp", "server_url": "https://x"}]}, "tool 'mcp'"),
        (RESPONSES, {"input": "Hi", "tools": [{"type": 7}]}, "tool 7"),
        (RESPONSES, {"input": "Hi", "previous_response_id": "resp_1"}, "the provider keeps"),
        (MESSAGES, {"messages": HELLO, "tools": [{"type": "web_fetch_20250910", "name": "f"}]}, "web_fetch_20250910"),
        (MESSAGES, {"messages": HELLO, "mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        (MESSAGES, {"messages": HELLO, "context_management": {"edits": [{"type": "x"}]}}, "context_management"),
        (MESSAGES, {"messages": HELLO, "container": {"skills": [{}]}}, "container"),
        (GEMINI, {"contents": [], "tools": [{"googleSearch": {}}]}, "tool 'googleSearch'"),
        (GEMINI, {"contents": [], "tools": [{"functionDeclarations": [], "url_context": {}}]}, "tool 'url_context'"),
    ],
)
def test_what_the_provider_adds_has_no_bound(path, body, why):
    """A typical estimate takes the request as it is."""
    refused = opened(path, body)
    assert isinstance(refused, RefusedOpening)
    assert refused.reason == "unmetered"
    assert why in refused.detail
    asked = read_request("POST", path, lambda name: None, json.dumps({"model": "m", **body}).encode())
    assert not isinstance(open_request(asked, [TPM], Metering(), Prices(1), 0), RefusedOpening)
    assert not asked.is_only_text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO, "tools": [{"type": "custom", "custom": {"name": "f"}}], "plugins": []}),
        (CHAT, {"messages": HELLO, "tools": None, "functions": [{"name": "f"}], "web_search_options": None}),
        (RESPONSES, {"input": "Hi", "tools": [{"type": "custom", "name": "f"}]}),
        (MESSAGES, {"messages": HELLO, "tools": [{"type": "custom", "name": "f", "input_schema": {}}]}),
        (GEMINI, {"contents": [], "tools": [{"function_declarations": []}]}),
    ],
)
def test_tools_that_the_client_runs_have_a_bound(path, body):
    assert not isinstance(opened(path, body), RefusedOpening)


def test_the_prompt_that_anthropic_adds_for_tools_counts():
    """It has more tokens than a small definition has bytes."""
    bare = opened(MESSAGES, {"messages": HELLO}).estimate.input
    assert bare < PROMPT_TOKENS
    assert opened(MESSAGES, {"messages": HELLO, "tools": [{"name": "f"}]}).estimate.input >= bare + PROMPT_TOKENS
    assert opened(MESSAGES, {"messages": HELLO, "tools": []}).estimate.input < PROMPT_TOKENS


def test_a_token_id_counts():
    ids = list(range(1_000))
    assert opened("/v1/embeddings", {"input": ids}).estimate.input >= 1_000
    assert opened("/v1/completions", {"prompt": [ids, ids]}).estimate.input >= 2_000 + MESSAGE_TOKENS


@pytest.mark.parametrize(
    ("path", "body", "cap", "lower"),
    [
        (CHAT, {"messages": HELLO}, 4_096, 4_094),
        (CHAT, {"messages": HELLO, "stream": True, "max_tokens": 5}, None, 3),
        (GEMINI, {"contents": []}, 4_096, 4_094),
        ("/v1/embeddings", {"input": "Hi"}, None, None),
        ("/v1/files", {}, None, None),
    ],
    ids=["a chat", "a cap of its own", "gemini", "nothing that a cap bounds", "no meter"],
)
def test_what_cap_was_written_is_known(path, body, cap, lower):
    asked = read_request("POST", path, {}.get, json.dumps({"model": "m", **body}).encode())
    counted = replace(TPM, unmetered="count_only")
    opening = open_request(asked, [counted], Metering(clamp_at_least=2), Prices(1), 0)
    assert opening.written_cap == cap
    lowered = opening.clamped([sum(opening.costs.values()) - 2])
    assert (lowered and lowered.written_cap) == lower
