"""What requests say, by the vectors of tests/vectors/metering/request.json."""

import json

import pytest

from enforcement.metering.request import Unmetered, read_request
from tests.enforcement.metering.wire_vectors import chunks_of, header_of, load

VECTORS = load("request")
SAME = ("format", "cap", "n", "text_bytes", "hide_usage")


def read(vector):
    request, policy = vector["request"], vector.get("policy", {})
    return read_request(
        request.get("method", "POST"),
        request["path"],
        header_of(request.get("headers")),
        b"".join(chunks_of(request)),
        default_cap=policy.get("default_cap"),
        **({"max_body": policy["body_bytes"]} if "body_bytes" in policy else {}),
    )


def seen_in(found):
    """Return what a request says, under the names of the vectors."""
    if isinstance(found, Unmetered):
        return {"unmetered": found.reason, "format": found.format}
    said = {name: getattr(found, name) for name in SAME}
    said |= {name: dict(getattr(found, name)) for name in ("attributes", "parts", "changes")}
    return said | {"unmetered": None}


def changed(value, changes):
    """Return a JSON value with values written at JSON pointers."""
    for pointer, new in changes.items():
        *way, last = pointer.split("/")[1:]
        inner = value
        for key in way:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[last] = new
    return value


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_a_request_says_what_its_vector_says(vector):
    """Format, attributes, cap and text are those of the vector, and the body has the changes and no others."""
    found = read(vector)

    expected, seen = vector["expect"], seen_in(found)
    assert {name: seen[name] for name in expected} == expected
    if "changes" in expected:
        assert json.loads(found.body) == changed(vector["request"]["json"], expected["changes"])
