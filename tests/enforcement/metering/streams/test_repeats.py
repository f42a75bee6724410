"""Events that repeat others in all but their text and some numbers are not read again, and count as if they were."""

import json
import random
import struct
from base64 import b64encode
from zlib import crc32

import pytest

from enforcement.metering.answer import AnswerMeter, reader_of
from enforcement.metering.streams.repeats import learn

TEXTS = (" the", "quick", "\\n", '\\"it\\"', "schön", "\\u00e9", "\\ud83d\\ude00", "\\\\", "}]}", "a\\/b", "x" * 90)
MODEL = "m-1"


def chat(chance, text, number):
    """A chunk of a server that reports usage in each chunk."""
    counts = {"prompt_tokens": 9, "completion_tokens": number, "total_tokens": 9 + number}
    return {
        "created": 1 + number // 3,
        "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        "usage": counts if chance.random() < 0.95 else None,
        "obfuscation": "x" * (number % 4),
    }


def gemini(chance, text, number):
    """A chunk of a thinking model, with counts that are missing or 0 now and then."""
    report = {"promptTokenCount": 9, "candidatesTokenCount": number // 2, "totalTokenCount": 9 + number}
    if chance.random() < 0.3:
        report["thoughtsTokenCount"] = chance.choice((0, 0, 0, number))
    if chance.random() < 0.02:
        report["candidatesTokenCount"] = chance.choice((-1, 10**9 + 1, 1.5))
    return {"candidates": [{"content": {"parts": [{"text": text}]}}], "usageMetadata": report, "modelVersion": MODEL}


def anthropic(chance, text, number):
    """A piece of text, or of reasoning."""
    kind = "thinking" if number < 30 and chance.random() < 0.01 else "text"
    return {"type": "content_block_delta", "index": number % 2, "delta": {"type": f"{kind}_delta", kind: text}}


def completion(chance, text, number):
    """A piece of text with the second in which it was written, at the end one of two answers by turns."""
    choice = {"text": text, "index": number % 2 if number > 150 else 0, "logprobs": None, "finish_reason": None}
    return {"id": "c", "created": 9 + number // 9, "choices": [choice], "model": MODEL}


def converse(chance, text, number):
    """A piece of text with padding."""
    return {"contentBlockIndex": 0, "delta": {"text": text}, "p": "abcdefghij"[: number % 9]}


def event(value):
    """Write an event as most providers do."""
    return b"data: " + value + b"\n\n"


def frame(kind, payload, broken=0):
    """Write a message of an event stream of AWS."""
    headers = b"".join(
        b"%c%b\x07%b%b" % (len(name), name, len(value).to_bytes(2, "big"), value)
        for name, value in ((b":event-type", kind), (b":message-type", b"event"))
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return message + struct.pack(">I", crc32(message) ^ broken)


FORMATS = {
    "openai-chat": (chat, event, lambda value: value),
    "openai-completions": (completion, event, lambda value: value),
    "gemini": (gemini, event, lambda value: value),
    "anthropic-messages": (anthropic, event, lambda value: value),
    "bedrock-converse": (
        converse,
        lambda data: frame(b"contentBlockDelta", data),
        lambda value: {"contentBlockDelta": value},
    ),
    "bedrock-invoke": (
        anthropic,
        lambda data: frame(b"chunk", b'{"bytes":"%b","p":"ab"}' % b64encode(data)),
        lambda value: value,
    ),
}
EXTRA = ("usage", "is_final", "model", "text_bytes", "hides_output", "calls")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_repeated_counts_as_if_it_was_read(format, seed):
    """Whatever varies and however events come together, a meter says at any time what a reader of all of them does."""
    make, wire, meant = FORMATS[format]
    chance = random.Random(seed)
    meter, reader, waiting = AnswerMeter(format), reader_of(format), b""
    for number in range(1, 200):
        text = chance.choice(TEXTS)
        data = json.dumps(make(chance, "\0", number), separators=(",", ":")).replace("\\u0000", text).encode()
        reader.read_event(meant(json.loads(data)))
        waiting += wire(data)
        if chance.random() < 0.7:
            meter.feed(waiting)
            waiting = b""
            if chance.random() < 0.5:
                assert [getattr(meter, name) for name in EXTRA] == [getattr(reader, name) for name in EXTRA]
    meter.feed(waiting)
    meter.finish(whole=False)

    assert [getattr(meter, name) for name in EXTRA] == [getattr(reader, name) for name in EXTRA]


@pytest.mark.parametrize(
    ("data", "other", "length"),
    [
        ('{"p":"ab","text":"hi"}', '{"p":"","text":"there"}', 5),
        ('{"text":"hi","sequence_number":9}', '{"text":"\\u00e9","sequence_number":10}', 2),
        ('{"text":"hi","sequence_number":9}', '{"text":"","sequence_number":0}', 0),
        ('{"text":"hi","total_tokens":9}', '{"text":"abc","total_tokens":123}', 3),
        ('{"text":"hi","total_tokens":9}', '{"text":"abc","total_tokens":0}', -1),
        ('{"text":"hi","total_tokens":9}', '{"text":"abc","total_tokens":9.5}', -1),
        ('{"text":"hi","total_tokens":9}', '{"text":"abc","total_tokens":1234567890}', -1),
        ('{"text":"hi","total_tokens":9}', '{"text":"abc","total_tokens":9,"x":1}', -1),
        ('{"text":"hi","sequence_number":9}', '{"text":"hi","sequence_number":09}', -1),
        ('{"text":"hi","p":"a"}', '{"text":"h"i","p":"a"}', -1),
        ('{"text":"hi","p":"a"}', '{"text":"h\\x","p":"a"}', -1),
    ],
)
def test_a_shape_lets_text_and_numbers_vary_and_nothing_else(data, other, length):
    """A count that may mean something else, or may not be believed, is read. So is what is no JSON."""
    shape = learn(data.encode(), lambda event, reports: len(json.loads(event)["text"]))

    assert shape is not None
    assert shape.text_bytes(other.encode()) == length
    assert shape.has_counts == ("total_tokens" in data)


def test_numbers_that_repeat_and_numbers_that_change_count_alike():
    """Also if one begins as the one before, and if a text says what the JSON behind it does."""
    shape = learn(
        b'{"created":10,"text":"hi","index":0}', lambda event, _: len(json.loads(event)["text"]), more_noise=True
    )
    assert shape is not None

    events = (
        (10, "a", 0),
        (10, "\\n", 0),
        (100, "abc", 0),
        (100, "", 0),
        (1, "\\u00e9", 12),
        (1, "x", 123),
        (2, "y", 1),
    )
    found = [
        shape.text_bytes(b'{"created":%d,"text":"%b","index":%d}' % (a, text.encode(), b)) for a, text, b in events
    ]

    assert found == [1, 1, 3, 0, 2, 1, 1]
    assert shape.text_bytes(b'{"created":2,"text":"y","index":1.5}') == -1
    assert shape.text_bytes(b'{"created":2,"text":"y"y","index":1}') == -1


def test_what_the_rates_depend_on_is_that_of_the_last_event():
    """Also if another event has said something else between two that repeat each other."""
    meter, reader = AnswerMeter("openai-chat"), reader_of("openai-chat")
    for tier, text in (("priority", "a"), ("priority", "b"), ("default", ""), ("priority", "c")):
        data = {"choices": [{"index": 0, "delta": {"content": text}}], "service_tier": tier}
        reader.read_event(data)
        meter.feed(event(json.dumps(data).encode()))
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    reader.read_event(usage)
    meter.feed(event(json.dumps(usage).encode()))

    assert meter.usage == reader.usage
    assert meter.usage.modifiers == ("service_tier=priority",)


def test_a_damaged_message_among_repeated_ones_ends_the_reading():
    """Each message is checked, also those whose headers are known."""
    meter = AnswerMeter("bedrock-converse")
    for number in range(5):
        meter.feed(frame(b"contentBlockDelta", b'{"delta":{"text":"ab"},"p":"%b"}' % (b"x" * number)))

    meter.feed(frame(b"contentBlockDelta", b'{"delta":{"text":"ab"},"p":"x"}', broken=1))

    assert not meter.is_readable
    assert meter.text_bytes is None
