"""JSON in lines, as Cohere's chats of version 1 stream it."""

import json

import pytest

from enforcement.metering.answer import AnswerMeter

UNITS = {"billed_units": {"input_tokens": 7, "output_tokens": 5}}
LINES = (
    {"is_finished": False, "event_type": "stream-start", "generation_id": "x"},
    {"is_finished": False, "event_type": "text-generation", "text": "abc"},
    {"is_finished": True, "event_type": "stream-end", "response": {"text": "abc", "meta": UNITS}},
)
BODY = {"text": "abc", "meta": UNITS}


def read(data, step=10**6, **options):
    meter = AnswerMeter("cohere-chat-v1", **options)
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    assert b"".join(meter.feed(chunk) for chunk in chunks) + meter.finish() == data
    return meter.usage and (meter.usage.input, meter.usage.output), meter.text_bytes, meter.settled_as


@pytest.mark.parametrize("step", [1, 7, 10**6])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lines_are_read_however_they_are_cut(step, end):
    data = end.join(map(json.dumps, LINES)).encode()
    assert read(data, step) == ((7, 5), 3, "exact")
    assert read(data + end.encode(), step) == ((7, 5), 3, "exact")


@pytest.mark.parametrize("step", [1, 10**6])
@pytest.mark.parametrize("data", [json.dumps(BODY), json.dumps(BODY, indent=2), json.dumps(BODY) + "\n"])
def test_one_body_is_read_whatever_lines_it_has(data, step):
    assert read(data.encode(), step) == ((7, 5), 3, "exact")


def test_a_stream_that_breaks_off_is_observed():
    assert read("\n".join(map(json.dumps, LINES[:2])).encode() + b'\n{"is_fin') == (None, 3, "observed")


def test_a_long_line_is_skipped():
    lines = [LINES[0], {"text": "x" * 5_000}, LINES[1], LINES[2]]
    assert read("\n".join(map(json.dumps, lines)).encode(), line_bytes=1024) == ((7, 5), 3, "exact")


def test_what_is_no_json_at_all_cannot_be_read():
    assert read(b"{oops\n{more\n") == (None, None, "estimated")
