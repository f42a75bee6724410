"""Usage and events, as packages of others read them."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enforcement.metering.answer import AnswerMeter
from enforcement.metering.streams.events import EventReader
from tests.enforcement.metering import oracle
from tests.enforcement.metering.test_answer import cut
from tests.scale import scale

COUNT = st.integers(0, 1_000_000)
LINES = st.sampled_from(
    ["data: é", "data:x", "data", "data:  y", ": note", "id: 1", "event: e", "retry: 5", "dat: a", ""]
)


@pytest.fixture(scope="module")
def theirs():
    with oracle.running() as running:
        yield running


def chat(total, cached, written, output):
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {"prompt_tokens": total, "completion_tokens": output, "prompt_tokens_details": details}


def response(total, cached, written, output):
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    return {"input_tokens": total, "output_tokens": output, "input_tokens_details": details}


def message(total, cached, written, output):
    named = {"cache_read_input_tokens": cached, "cache_creation_input_tokens": written}
    return {"input_tokens": total - cached - written, "output_tokens": output, **named}


def gemini(total, cached, written, output):
    thoughts = output // 3
    counts = {"candidatesTokenCount": output - thoughts, "thoughtsTokenCount": thoughts}
    return {"promptTokenCount": total, "cachedContentTokenCount": cached, **counts}


FORMATS = {
    "openai-chat": ("openai", "chat", "usage", "model", "gpt-4o", chat),
    "openai-responses": ("openai", "responses", "usage", "model", "gpt-5", response),
    "anthropic-messages": ("anthropic", "default", "usage", "model", "claude-sonnet-4-5", message),
    "gemini": ("google", "default", "usageMetadata", "modelVersion", "gemini-2.5-flash", gemini),
}


@pytest.mark.proof
@settings(max_examples=scale(30, 1000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.tuples(COUNT, COUNT, COUNT, COUNT))
@pytest.mark.parametrize("format", FORMATS)
def test_usage_is_what_genai_prices_finds(theirs, format, counts):
    """All input, input from and into the cache, and output are the same."""
    provider, flavor, field, name, model, report = FORMATS[format]
    uncached, cached, written, output = counts
    written = 0 if format == "gemini" else written
    answer = {name: model, field: report(uncached + cached + written, cached, written, output)}
    meter = AnswerMeter(format)

    meter.feed(json.dumps(answer).encode())
    meter.finish()

    found = theirs.usage(provider, flavor, answer)
    seen = meter.usage
    assert [found[name] for name in ("input", "cached", "written", "output")] == [
        seen.all_input,
        seen.cached_input,
        seen.cache_write,
        seen.output,
    ]


@pytest.mark.proof
@settings(max_examples=scale(60, 3000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=12), at=st.lists(st.integers(0))
)
def test_events_are_those_that_httpx_sse_finds(theirs, lines, at):
    """Whatever ends the lines, and wherever the chunks end."""
    chunks = cut(("".join(line + end for line, end in lines) + "\n\n").encode(), at)
    found = []
    reader = EventReader(lambda data: found.append(data.decode()), limit=1024)

    for chunk in chunks:
        reader.feed(chunk)
    reader.finish()

    assert found == theirs.events(chunks)


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize("encoding", ["br", "zstd"])
def test_streams_in_optional_encodings_are_read(theirs, encoding, step):
    """With the packages of the extra, however the bytes are cut; and a bomb is given up."""
    event = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'

    assert theirs.meter(encoding, event * 50, step)[:3] == [True, 100, "observed"]


@pytest.mark.parametrize("encoding", ["br", "zstd"])
def test_a_bomb_in_an_optional_encoding_is_given_up(theirs, encoding):
    """A few bytes that would become very many are passed on and not read."""
    passed, text_bytes, settled_as, length = theirs.meter(encoding, b"data: " + b"0" * 20_000_000, 1_000_000)

    assert (passed, text_bytes, settled_as) == (True, None, "estimated")
    assert length < 100_000
