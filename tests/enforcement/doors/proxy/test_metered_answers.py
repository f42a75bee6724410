"""Answers of a provider from which a proxy might read less than the provider charges for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from enforcement import Limiter
from enforcement.testing import Published
from tests.enforcement.doors.proxy.conftest import Peer, Scripted
from tests.enforcement.doors.proxy.test_metered_attacks import BUDGET, LIMITS, PRICES, SAID, Attacked, metering
from tests.enforcement.doors.proxy.test_metered_paths import CHAT, SMALL, send, spent

ESTIMATE = 13
"""Micros of the one token of input and the 20 tokens of output that the request may have."""
BODY = json.dumps(SAID).encode()
EVENTS = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\ndata: {"choices":[],"usage":' + json.dumps(
    SAID["usage"]
).encode() + b"}\n\ndata: [DONE]\n\n"  # fmt: skip


def answer(status: str, body: bytes = BODY, *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


def chunked(body: bytes, *trailer: str) -> bytes:
    fields = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Usage\r\n\r\n"
    return fields.encode() + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + "".join(trailer).encode() + b"\r\n"


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
ANSWERS = {
    "after interim answers": (INTERIM + answer("200 OK"), SMALL),
    "chunked, with a trailer": (chunked(BODY, "X-Usage: 0\r\n"), SMALL),
    "compressed without being asked": (answer("200 OK", gzip.compress(BODY), "Content-Encoding: gzip"), SMALL),
    "compressed twice": (
        answer("200 OK", gzip.compress(gzip.compress(BODY)), "Content-Encoding: gzip", "Content-Encoding: gzip"),
        ESTIMATE,
    ),
    "a part of the body": (answer("206 Partial Content", BODY[:20], "Content-Range: bytes 0-19/99"), ESTIMATE),
    "a part of the events": (answer("206 Partial Content", EVENTS[:50], "Content-Range: bytes 0-49/199"), ESTIMATE),
    "all events as a part": (answer("206 Partial Content", EVENTS, "Content-Range: bytes 0-198/199"), SMALL),
    "parts in a multipart body": (answer("206 Partial Content", b"--x\r\n\r\n{}\r\n--x--"), ESTIMATE),
    "accepted, to be asked for later": (answer("202 Accepted", b'{"id":"task-1","status":"queued"}'), ESTIMATE),
    "an error with usage": (answer("429 Too Many Requests"), SMALL),
    "an error": (answer("503 Service Unavailable", b"{}"), 0),
}


@pytest.fixture(scope="module")
def kind() -> str:
    return "uvicorn"


@pytest.fixture(scope="module")
def attacked(published: Published, tmp_path_factory: Any, kind: str) -> Iterator[Attacked]:
    def script(peer: Peer) -> None:
        while head := peer.head():
            fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in head.splitlines()}
            peer.body(int(fields[b"content-length"]))
            peer.send(ANSWERS[fields[b"x-case"].decode()][0])

    upstream = Scripted(script)
    policy = {"schema": 1, "id": f"pol_{BUDGET}", "slug": BUDGET, "name": BUDGET, "version": 1, "limits": LIMITS}
    published.publish({f"policy:pol_{BUDGET}": policy}, prices=(PRICES,))
    with metering(published, upstream, tmp_path_factory.mktemp("metered"), kind) as port:
        yield Attacked(port, [], published)
    upstream.close()


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_charged_whatever_its_form(server: Any, attacked: Attacked, case: str) -> None:
    """What cannot be read, or is only a part, keeps the charge of its estimate. Only an error costs nothing."""
    _, token = send(attacked, "/v1/chat/completions", CHAT, f"X-Case: {case}\r\n")

    with Limiter(server.url, timeout=2.0, lookup=5.0) as limiter:
        assert spent(limiter, token) == ANSWERS[case][1]
