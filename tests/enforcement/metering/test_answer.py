"""Properties of answers that are read while they pass: any cut of the bytes, any bytes, bounded memory."""

import gc
import gzip
import json
import sys
import tracemalloc
import weakref
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enforcement import metering
from enforcement.metering.amounts import Usage
from enforcement.metering.answer import FORMATS, MAX_LINE, MIN_LIMIT, AnswerMeter
from enforcement.metering.streams.encodings import ALL_ENCODINGS
from tests.enforcement.metering.test_amounts_vectors import seen_by
from tests.scale import scale

USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
# Quotes, backslashes, control characters, other planes and halves of pairs: whatever JSON writes in another way.
TEXT = st.text(st.sampled_from('ab "\\\n\té漢😀\ud83d\x7f'), max_size=6)
PADDED = st.fixed_dictionaries({}, optional={"obfuscation": TEXT, "sequence_number": st.integers(0, 12)})


def chat(text):
    return {"model": "m", "choices": [{"index": 0, "delta": {"content": text}}], "usage": None}


def response(text):
    return {"type": "response.output_text.delta", "delta": text}


def message(text):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def content(text):
    part = {"text": text, "functionCall": {"name": "f", "args": {"obfuscation": text}}}
    return {"candidates": [{"content": {"parts": [part]}}], "modelVersion": "m"}


DELTAS = {"openai-chat": chat, "openai-responses": response, "anthropic-messages": message, "gemini": content}


@st.composite
def event_lines(draw):
    """Draw the lines of one event of a chat stream, whole or odd, without its blank line."""
    value = draw(
        st.one_of(
            st.builds(lambda text, more: chat(text) | more, TEXT, PADDED),
            st.just({"model": "n", "choices": [], "usage": USAGE}),
            st.just({"model": "", "choices": [], "usage": None}),
            st.just([1]),
        )
    )
    lines = [f"data: {line}" for line in json.dumps(value, ensure_ascii=draw(st.booleans())).split(" ", 1)]
    if draw(st.booleans()):
        lines = [f"data:{json.dumps(value)}"]
    odd = st.sampled_from(
        [": note", "event: x", "id", "data", "retry: 1", "database: 1", "data: [DONE]", "", "x" * 1100]
    )
    for at in draw(st.lists(st.integers(0, 2), max_size=2)):
        lines.insert(at, draw(odd))
    return lines


@st.composite
def streams(draw):
    """Draw the bytes of a chat stream."""
    out = draw(st.sampled_from(["", "\ufeff", "\n", " \r\n"]))
    for lines in draw(st.lists(event_lines(), max_size=6)):
        out += "".join(line + draw(ENDS) for line in [*lines, ""])
    return out.encode("utf-8", "surrogatepass")[: draw(st.sampled_from([None, -1, -3]))]


def cut(data, at):
    """Return the bytes in chunks that end at these offsets."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[begin:end] for begin, end in pairwise(places)]


def read(chunks, format="openai-chat", whole=True, **options):
    """Return what a meter says of an answer, and the bytes that it passes on."""
    meter = AnswerMeter(format, **options)
    passed = b"".join(meter.feed(chunk) for chunk in chunks) + meter.finish(whole)
    return seen_by(meter), passed


@pytest.mark.proof
@settings(max_examples=scale(80, 5000), deadline=None)
@given(data=streams(), at=st.lists(st.integers(0, 10_000), max_size=12), hides=st.booleans())
def test_a_stream_means_the_same_however_it_is_cut(data, at, hides):
    """Usage, text and the client's bytes depend on the bytes alone, not on the chunks that they come in."""
    options = {"hide_usage": hides, "line_bytes": MIN_LIMIT}
    whole = read([data], **options)

    assert read(cut(data, at), **options) == whole
    assert read([data[place : place + 1] for place in range(len(data))], **options) == whole
    assert hides or whole[1] == data


@pytest.mark.proof
@settings(max_examples=scale(60, 3000), deadline=None)
@given(
    texts=st.lists(TEXT, max_size=5),
    between=st.sampled_from([",", " ,\r\n", ',1,"]{",[{}],']),
    end=st.sampled_from(["]", "", "]]{", "}"]),
    at=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_an_array_means_the_same_however_it_is_cut(texts, between, end, at):
    """Each element that is an object is read as an event, and its brackets inside strings are text."""
    elements = [content(text + "[{\\") | {"usageMetadata": {"candidatesTokenCount": 7}} for text in texts]
    alone = [json.dumps(element).encode() for element in elements]
    data = ("[" + between.join(json.dumps(element) for element in elements) + end).encode()

    seen, passed = read([data], "gemini")

    assert (passed, seen["text_bytes"]) == (data, read_alone(alone, "gemini"))
    assert read(cut(data, at), "gemini") == (seen, data)
    assert read([data[place : place + 1] for place in range(len(data))], "gemini") == (seen, data)


def read_alone(chunks, format):
    """Return the bytes of text of chunks that are read by a meter each."""
    return sum(read([chunk], format)[0]["text_bytes"] for chunk in chunks)


@pytest.mark.proof
@settings(max_examples=scale(60, 3000), deadline=None)
@given(data=st.data(), format=st.sampled_from(sorted(DELTAS)))
def test_text_of_a_stream_is_the_sum_of_that_of_its_events(data, format):
    """Events that repeat the shape of others count as they do alone, where no shape is known."""
    deltas = st.builds(lambda text, more: DELTAS[format](text) | more, TEXT, PADDED)
    events = data.draw(st.lists(deltas, max_size=12))
    chunks = [
        b"data: " + json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n\n" for event in events
    ]

    alone = read_alone(chunks, format)

    assert read(chunks, format)[0]["text_bytes"] == alone
    assert read([b"".join(chunks)], format)[0]["text_bytes"] == alone


@pytest.mark.proof
@settings(max_examples=scale(80, 5000), deadline=None)
@given(kept=st.lists(st.tuples(TEXT, ENDS), max_size=5), hidden=st.lists(st.integers(0, 5), max_size=3), at=st.data())
def test_hidden_bytes_are_exactly_the_events_that_report_usage(kept, hidden, at):
    """The client gets all other bytes, and the line ends of a hidden event go with it."""
    report = {"choices": [], "usage": USAGE}
    events = [(chat(text), end, False) for text, end in kept]
    for place in hidden:
        events.insert(place, (report, at.draw(ENDS), True))
    blocks = [(f"data: {json.dumps(event)}{end}{end}".encode(), hides) for event, end, hides in events]
    data = b"".join(block for block, _ in blocks)

    seen, passed = read(cut(data, at.draw(st.lists(st.integers(0, 9999), max_size=6))), hide_usage=True)

    assert passed == b"".join(block for block, hides in blocks if not hides)
    assert (seen["usage"] is not None) == bool(hidden)


SEEDS = (
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\r\n\r\n',
    b'[{"candidates":[{"content":{"parts":[{"text":"a"}]}}]},\n{}]',
    b'{"usage":{"input_tokens":[1],"output_tokens":{}},"content":[{"type":[],"text":1}],"model":{},"output":[{"type":{}}]}',
    b'event: message_delta\ndata: {"type":"message_delta","delta":[],"usage":7}\n\n',
    b'data: {"type":{},"response":[],"candidates":{},"usageMetadata":[1],"promptFeedback":1,"modelVersion":[]}\n\n',
    gzip.compress(b"data: {}\n\n"),
)


@pytest.mark.proof
@settings(max_examples=scale(150, 20_000), deadline=None)
@given(
    parts=st.lists(st.one_of(st.sampled_from(SEEDS), st.binary(max_size=8)), max_size=6),
    format=st.sampled_from(FORMATS),
    encoding=st.sampled_from([None, "gzip", "deflate", "identity", "gzip, gzip", "nonsense"]),
    hides=st.booleans(),
)
def test_no_bytes_raise_or_are_lost(parts, format, encoding, hides):
    """Whatever a provider sends passes on, but for events that report usage alone."""
    options = {"content_encoding": encoding, "encodings": ALL_ENCODINGS, "hide_usage": hides, "line_bytes": MIN_LIMIT}
    seen, passed = read(parts, format, **options)

    assert hides or passed == b"".join(parts)
    assert seen["settled_as"] in ("exact", "observed", "estimated")


SIZE = 8192
# What comes first, and what is repeated without end.
ENDLESS = {
    "a line": (b"data: ", b"y" * SIZE),
    "data lines": (b"", b"data: 0,\n" * (SIZE // 8)),
    "comments of an event": (b"data: 1\n", b":\n" * (SIZE // 2)),
    "blanks": (b"", b" " * SIZE),
    "line ends": (b"", b"\r" * SIZE),
    "a JSON body": (b'{"a":"', b"x" * SIZE),
    "an element": (b'[{"a":"', b"x" * SIZE),
    "brackets": (b"[", b"[" * SIZE),
    "escapes": (b'[{"a":"', b"\\\\" * (SIZE // 2)),
    "events": (b"", b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' * (SIZE // 64)),
}


def kept_by_meters():
    """Return how many bytes were allocated by meters, or what they call, and are in use. Other threads do not count."""
    ours = tracemalloc.Filter(True, f"{Path(metering.__file__).parent}/*", all_frames=True)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_hostile_answer_does_not_grow_memory(name, hides):
    """After 12 times its limits the meter keeps no more than its limits, and all bytes have passed."""
    begin, chunk = ENDLESS[name]
    meter = AnswerMeter("openai-chat", hide_usage=hides, line_bytes=SIZE, body_bytes=SIZE)
    sent = len(begin) + 12 * len(chunk)

    tracemalloc.start(6)
    passed = len(meter.feed(begin))
    for _ in range(12):
        passed += len(meter.feed(chunk))
    kept = kept_by_meters()
    tracemalloc.stop()

    assert kept < 8 * SIZE
    assert passed + len(meter.finish(whole=False)) == sent


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compression_bomb_is_given_up(encoding):
    """A few bytes that would become very many are passed on, and the answer counts as unreadable."""
    bomb = b"data: " + b"\0" * 50_000_000
    packed = gzip.compress(bomb) if encoding == "gzip" else zlib.compress(bomb)
    meter = AnswerMeter("openai-chat", 200, encoding, encodings=ALL_ENCODINGS)

    tracemalloc.start()
    assert meter.feed(packed) == packed
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (meter.text_bytes, meter.settled_as) == (None, "estimated")
    assert peak < 3 * MAX_LINE


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]) + b"\0\0"),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_a_compressed_stream_is_read(encoding, pack):
    """Also if it comes byte by byte, in two gzip members, or as deflate without its header."""
    events = [chat("Hi"), {"choices": [], "usage": USAGE}]
    data = pack(b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))

    seen, passed = read(
        [data[place : place + 1] for place in range(len(data))], content_encoding=encoding, encodings=ALL_ENCODINGS
    )

    assert passed == data
    assert (seen["text_bytes"], seen["final"], seen["usage"]["output"]) == (2, True, 2)


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd"])
def test_other_encodings_than_gzip_are_read_on_request_only(encoding):
    """Unless the caller names them, answers in these encodings are unreadable."""
    assert AnswerMeter("openai-chat", 200, encoding).settled_as == "estimated"


def test_a_stream_goes_back_to_the_model_of_its_events():
    """An event with the shape of an earlier one names that one's model again."""
    other = {"model": "n", "choices": [], "usage": None}
    events = [chat("a"), chat("b"), chat("c"), other, chat("d")]
    chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]

    assert read(chunks[:4])[0]["model"] == "n"
    assert read(chunks)[0]["model"] == "m"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "mcp"}, "format: must be one of openai-chat, .* got 'mcp'"),
        ({"format": "gemini", "line_bytes": 5}, "must be at least 1024"),
    ],
)
def test_a_meter_that_cannot_be_is_refused(arguments, sentence):
    """An unknown format and limits that hold nothing are errors of the program."""
    with pytest.raises(ValueError, match=sentence):
        AnswerMeter(**arguments)


def stream(*events):
    """Return the bytes of events; a string stands for its own data."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def test_chunks_of_two_events_count_both():
    """A shape is that of one event, also where each chunk brings the same two."""
    chunks = [stream(chat("a"), chat(text)) for text in ("b", "c", "d", "ef")]

    assert read(chunks)[0]["text_bytes"] == 9


def test_events_that_come_together_count_as_if_they_came_apart():
    """A busy process gets several in a chunk, also with escapes in their text."""
    texts = ["b", 'say "c"', "d\n", "é", "\\\\n", "/", "ef"]
    apart = [stream(chat(text)) for text in ("a", "a", *texts)]
    together = [*apart[:2], b"".join(apart[2:5]), b"".join(apart[5:])]

    assert read(together) == read(apart)
    assert read(together)[0]["text_bytes"] == 20


def test_nothing_counts_after_the_end_of_the_stream():
    """Events of a known shape neither, each in a chunk of its own."""
    chunks = [stream(event) for event in (chat("a"), chat("b"), chat("c"), "[DONE]", chat("d"), chat("e"))]

    assert read(chunks)[0]["text_bytes"] == 3


def test_usage_is_final_as_soon_as_the_stream_says_that_it_ends():
    """Also if the connection breaks then: a running report has become the last word."""
    meter = AnswerMeter("openai-chat")

    meter.feed(stream(chat("a") | {"usage": USAGE}))
    assert (meter.is_final, meter.settled_as) == (False, "observed")
    meter.feed(stream("[DONE]"))

    assert (meter.is_final, meter.settled_as) == (True, "exact")


@pytest.mark.parametrize("format", ["openai-responses", "gemini"])
def test_a_long_last_event_is_read(format):
    """A response repeats the instructions, and a client chooses their length. An image may be long, too."""
    usage = {"input_tokens": 9, "output_tokens": 7}
    last = {"type": "response.completed", "response": {"instructions": "x" * 3_000_000, "usage": usage}}
    if format == "gemini":
        image = {"inlineData": {"mimeType": "image/png", "data": "x" * 3_000_000}}
        usage = {"promptTokenCount": 9, "candidatesTokenCount": 7}
        last = {"candidates": [{"content": {"parts": [image]}, "finishReason": "STOP"}], "usageMetadata": usage}
    meter = AnswerMeter(format)
    data = stream({"type": "x"}, last)
    for at in range(0, len(data), 65_536):
        meter.feed(data[at : at + 65_536])
    meter.finish()
    assert (meter.settled_as, meter.usage) == ("exact", Usage(9, output=7))


MARK = "\ufeff".encode()
REPORT = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n"
LONG = b"x" * (MIN_LIMIT + 100) + b"\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (MARK + LONG + REPORT + b"\n", MARK),
        (MARK + LONG + REPORT, MARK),
        (MARK + LONG + LONG + REPORT, MARK + LONG + LONG + REPORT),
        (MARK + REPORT + b"\n" + REPORT + b"\n", MARK),
        (MARK, MARK),
        (MARK[:2], MARK[:2]),
    ],
    ids=["a long line", "no blank line", "an event too long to be held", "two events", "alone", "in part"],
)
@pytest.mark.parametrize("step", [1, 2, 10_000])
def test_a_byte_order_mark_reaches_the_client_once(data, expected, step):
    """Also if the line behind it is too long to be read, and if its event passed before it was read."""
    chunks = [data[at : at + step] for at in range(0, len(data), step)]

    assert read(chunks, hide_usage=True, line_bytes=MIN_LIMIT)[1] == expected


@pytest.mark.parametrize("step", [1, 10_000])
def test_only_the_first_line_of_a_stream_has_a_byte_order_mark(step):
    """In any other line it is a part of the name of a field, which is skipped, and not its event."""
    data = b"\n" + REPORT + MARK + b"data: " + LONG + b"\n"
    chunks = [data[at : at + step] for at in range(0, len(data), step)]

    assert read(chunks, line_bytes=MIN_LIMIT)[0]["usage"]["output"] == USAGE["completion_tokens"]


def test_a_long_event_is_not_held_back_to_its_end():
    """It passes while it comes, although it might have reported usage alone."""
    meter = AnswerMeter("openai-chat", hide_usage=True)
    sent = b"".join(meter.feed(b"data: " + b"x" * 100_000 if not n else b"x" * 100_000) for n in range(30))
    assert len(sent) > 2_900_000


@pytest.mark.parametrize("notes", [450, 700])
def test_an_event_of_many_lines_passes_if_it_is_too_long_to_be_held(notes):
    """Up to twice the limit it is hidden, whatever its lines; above it passes, in one chunk or in many."""
    event = b": x\n" * notes + stream({"choices": [], "usage": USAGE})
    expected = b"" if len(event) - 1 <= 2 * MIN_LIMIT else event
    options = {"hide_usage": True, "line_bytes": MIN_LIMIT}

    assert read([event], **options)[1] == expected
    assert read([event[at : at + 1] for at in range(len(event))], **options)[1] == expected
    assert (notes == 450) == (expected == b"")


@pytest.mark.parametrize(("encoding", "package"), [("br", "brotli"), ("zstd", "backports")])
def test_an_encoding_without_its_package_is_unreadable(encoding, package, monkeypatch):
    """The answer passes, and is settled by its estimate."""
    for name in (package, "compression"):
        monkeypatch.setitem(sys.modules, name, None)

    seen, passed = read([b"\x28\xb5"], content_encoding=encoding, encodings=ALL_ENCODINGS)

    assert (seen["settled_as"], passed) == ("estimated", b"\x28\xb5")


@pytest.mark.parametrize(("more", "settled_as"), [(0, "exact"), (1, "observed"), (9, "observed")])
@pytest.mark.parametrize("format", ["openai-chat", "gemini"])
def test_usage_of_less_than_the_whole_text_is_no_last_word(format, more, settled_as):
    """A server may report while its stream runs, and then no more."""
    say, last = {
        "openai-chat": (chat, {"choices": [{"delta": {}, "finish_reason": "stop"}]}),
        "gemini": (content, {"candidates": [{"finishReason": "STOP"}]}),
    }[format]
    reported = {"usage": USAGE, "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2}}
    meter = AnswerMeter(format)
    for event in (*[say("ab") | reported] * 3, *[say("cd")] * more, last):
        meter.feed(stream(event))
    meter.finish()

    assert meter.settled_as == settled_as


@pytest.mark.parametrize("body", [b'{"usage": null}', stream(chat("a"), chat("b"), chat("c"))])
def test_an_answer_that_was_read_waits_for_no_collector_of_garbage(body):
    """Its meter is freed at once. In a circle of references it would stay until the collector comes."""
    gc.disable()
    try:
        meter = AnswerMeter("openai-chat", hide_usage=True)
        meter.feed(body)
        meter.finish()
        left = weakref.ref(meter)
        del meter
        assert left() is None
    finally:
        gc.enable()
