"""Event streams of AWS, however they are cut, damaged or unknown."""

import json
import struct
from base64 import b64encode
from itertools import pairwise
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcement.metering.answer import AnswerMeter
from enforcement.metering.streams.frames import FrameReader
from tests.enforcement.metering.fleet import examples


def message(payload=b"", headers=b"", **names):
    """Return a message, with more bytes among its headers."""
    for name, value in names.items():
        name, value = f":{name.replace('_', '-')}".encode(), value.encode()
        headers += bytes([len(name)]) + name + b"\x07" + struct.pack(">H", len(value)) + value
    head = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    whole = head + struct.pack(">I", crc32(head)) + headers + payload
    return whole + struct.pack(">I", crc32(whole))


def event(kind, value, **names):
    return message(json.dumps(value).encode(), **{"event_type": kind, "message_type": "event", **names})


# One header of each type, of which only the last is a string.
ALL_TYPES = b"\x01a\x00\x01b\x01\x01c\x02x\x01d\x03xx\x01e\x04xxxx\x01f\x05xxxxxxxx\x01g\x06\x00\x01x\x01h\x08xxxxxxxx"
ALL_TYPES += b"\x01i\x09" + b"x" * 16 + b"\x01j\x07\x00\x02ok"
STREAM = b"".join(
    (
        event("messageStart", {"role": "assistant"}),
        event("contentBlockDelta", {"delta": {"text": "Hé"}, "p": "abc"}),
        event("unheardOf", {"delta": {"text": "no text"}}),
        message(b"not JSON", event_type="contentBlockDelta", message_type="event"),
        message(ALL_TYPES and b"{}", ALL_TYPES, event_type="contentBlockStop", message_type="event"),
        event("metadata", {"usage": {"inputTokens": 9, "outputTokens": 2, "totalTokens": 11}}),
    )
)

DELTA = event("contentBlockDelta", {"delta": {"text": "abc"}})


def read(*chunks, format="bedrock-converse", **options):
    meter = AnswerMeter(format, **options)
    assert b"".join(meter.feed(chunk) for chunk in chunks) == b"".join(chunks)
    assert meter.finish() == b""
    return meter


def seen(meter):
    usage = meter.usage
    return usage and (usage.input, usage.output), meter.text_bytes, meter.settled_as


@examples(50)
@given(st.lists(st.integers(0, len(STREAM))))
def test_a_stream_means_the_same_however_it_is_cut(cuts):
    ends = [0, *sorted(cuts), len(STREAM)]
    assert seen(read(*[STREAM[a:b] for a, b in pairwise(ends)])) == ((9, 2), 3, "exact")


def test_a_stream_is_read_byte_by_byte():
    assert seen(read(*[STREAM[at : at + 1] for at in range(len(STREAM))])) == ((9, 2), 3, "exact")


@pytest.mark.parametrize("at", range(0, len(STREAM), 7))
def test_a_damaged_stream_is_given_up(at):
    """Whichever byte is wrong, nothing behind it counts. The estimate stays."""
    damaged = bytearray(STREAM)
    damaged[at] ^= 0x40
    if at == 0:
        return  # an answer that begins otherwise is no such stream
    assert seen(read(bytes(damaged)))[1:] == (None, "estimated")


@pytest.mark.parametrize("at", range(0, len(DELTA), 9))
def test_a_damaged_message_is_found_that_begins_like_those_before(at):
    damaged = bytearray(DELTA)
    damaged[at] ^= 0x40
    assert read(DELTA, DELTA, DELTA).text_bytes == 9
    assert seen(read(DELTA, DELTA, bytes(damaged), DELTA))[1:] == (None, "estimated")


def test_messages_of_any_number_of_lengths_are_read():
    chunks = [event("contentBlockDelta", {"delta": {"text": "x" * size}}) for size in range(300)]
    assert read(*chunks, *chunks).text_bytes == 2 * sum(range(300))


@pytest.mark.parametrize("total", [0, 15, 2**25, 2**32 - 1])
def test_a_length_that_cannot_be_ends_the_reading(total):
    head = struct.pack(">II", total, 0)
    found = []
    reader = FrameReader(lambda headers: found.append, limit=1024)
    reader.feed(head + struct.pack(">I", crc32(head)) + STREAM)
    assert (reader.is_broken, found) == (True, [])


@pytest.mark.parametrize("headers", [b"\x01", b"\x05ab", b"\x01a\x07\xff\xff", b"\x01a\x0a", b"\x01a\x05xx"])
def test_malformed_headers_end_the_reading(headers):
    assert read(message(b"{}", headers), STREAM).settled_as == "estimated"


def test_a_long_message_is_skipped():
    """It passes, and what follows is read."""
    long = event("contentBlockDelta", {"delta": {"text": "x" * 5_000}})
    data = long + long + STREAM
    assert seen(read(data, line_bytes=1024)) == ((9, 2), 3, "exact")
    assert seen(read(*[data[at : at + 900] for at in range(0, len(data), 900)], line_bytes=1024)) == (
        (9, 2),
        3,
        "exact",
    )


def test_an_exception_is_no_last_word():
    """What was seen before it counts."""
    failed = message(b'{"message":"x"}', exception_type="throttlingException", message_type="exception")
    begun = event("contentBlockDelta", {"delta": {"text": "abc"}})
    assert seen(read(begun, failed)) == (None, 3, "observed")
    assert seen(read(begun, message(error_code="x", message_type="error"))) == (None, 3, "observed")


def test_a_stream_that_ends_within_a_message_has_no_last_word():
    assert seen(read(STREAM[:-1])) == (None, 3, "observed")


def test_a_chunk_has_an_event_of_the_model_inside():
    def chunk(value):
        return event("chunk", {"bytes": b64encode(json.dumps(value).encode()).decode(), "p": "ab"})

    start = chunk(
        {"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": 7, "output_tokens": 1}}}
    )
    text = chunk({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "abc"}})
    delta = chunk({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}})
    meter = read(
        start, text, event("chunk", {"bytes": "%%%"}), event("chunk", {"bytes": 7}), delta, format="bedrock-invoke"
    )
    assert (seen(meter), meter.model) == (((7, 5), 3, "observed"), "claude")
    stop = chunk(
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 7, "outputTokenCount": 5}}
    )
    assert seen(read(start, text, delta, stop, format="bedrock-invoke")) == ((7, 5), 3, "exact")
    assert seen(read(stop, format="bedrock-invoke"))[0] == (7, 5)


def test_other_formats_have_no_such_streams():
    assert read(STREAM, format="openai-chat").settled_as == "observed"
