"""What answers say, by the vectors of tests/vectors/metering/usage.json."""

import pytest

from enforcement.metering.amounts import CLASSES, count_of
from enforcement.metering.answer import AnswerMeter
from tests.enforcement.metering.wire_vectors import chunks_of, header_of, load

VECTORS = load("usage")
WAYS = {
    "as it came": lambda chunks: chunks,
    "byte by byte": lambda chunks: [bytes([byte]) for chunk in chunks for byte in chunk],
    "at once": lambda chunks: [b"".join(chunks)],
}


def meter_of(vector):
    request, answer = vector["request"], vector["answer"]
    encoding = header_of(answer.get("headers"))("content-encoding")
    hide = request.get("include_usage_added", False)
    return AnswerMeter(request["format"], answer["status"], encoding, hide_usage=hide, **vector.get("limits", {}))


def seen_by(meter, names=CLASSES):
    """Return what a meter says, under the names of the vectors, and of the usage the classes with these names."""
    usage = None if meter.usage is None else {name: _number(meter.usage, name) for name in names}
    said = {"usage": usage, "final": meter.is_final, "model": meter.model}
    return said | {"text_bytes": meter.text_bytes, "settled_as": meter.settled_as}


def _number(usage, name):
    return usage.calls if name == "calls" else count_of(usage, name)


def client_of(vector, chunks):
    """Return the bytes that the client gets."""
    expected = vector["expect"]
    if "client" in expected:
        return b"".join(chunks_of({"chunks": expected["client"]}))
    hidden = expected.get("hidden", [])
    return b"".join(chunk for index, chunk in enumerate(chunks) if index not in hidden)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_an_answer_says_what_its_vector_says(vector, way):
    """However the bytes are cut, the meter says the same, and the client gets the same bytes."""
    meter, chunks = meter_of(vector), chunks_of(vector["answer"])

    got = b"".join(meter.feed(chunk) for chunk in WAYS[way](chunks))
    got += meter.finish(vector["answer"].get("whole", True))

    assert got == client_of(vector, chunks)
    expected = {name: value for name, value in vector["expect"].items() if name not in ("hidden", "client")}
    seen = seen_by(meter, expected.get("usage") or CLASSES)
    assert repr({name: seen[name] for name in expected}) == repr(expected)
