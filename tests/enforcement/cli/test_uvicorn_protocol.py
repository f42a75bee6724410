"""What a client may send to uvicorn before anybody decides on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from enforcement.cli import uvicorn_protocol
from enforcement.cli.uvicorn_protocol import MOST_HEAD, BoundedProtocol
from tests.enforcement.doors.conftest import serving

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FIELD = b"X-Long: " + b"y" * 100_000 + b"\r\n"


async def counting(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request with the number of bytes in its body and of its fields."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    body = b"%d %d\n" % (size, len(scope["headers"]))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def raw() -> Iterator[socket.socket]:
    """Connect to the application on uvicorn."""
    with serving(counting, http=BoundedProtocol, lifespan="off") as client:
        connection = socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20)
        with connection:
            yield connection


def until(raw: socket.socket, ending: bytes) -> bytes:
    """Read until these bytes, which may be none, or to the end of the connection."""
    data = b""
    try:
        while not data.endswith(ending) and (part := raw.recv(65_536)):
            data += part
    except ConnectionResetError:
        pass
    return data


def flood(raw: socket.socket, begin: bytes, part: bytes) -> bytes:
    """Send a part for ever, and return what the server sends before it closes the connection."""
    raw.sendall(begin)
    for _ in range(50 * MOST_HEAD // len(part)):  # sockets take some of it, too
        try:
            raw.sendall(part)
        except OSError:
            break
    else:
        raise AssertionError("the server took all of it")
    return until(raw, b"\r\n\r\n")


def test_an_endless_head_is_refused(raw: socket.socket) -> None:
    """Memory does not grow with it."""
    assert flood(raw, b"GET / HTTP/1.1\r\nHost: x\r\n", FIELD) in (b"", uvicorn_protocol._TOO_LARGE)


def test_an_endless_trailer_is_cut_off(raw: socket.socket) -> None:
    """The request is not complete, and gets no response."""
    assert flood(raw, CHUNKED + b"0\r\n", FIELD) == b""


def test_a_long_body_is_no_head(raw: socket.socket) -> None:
    """Neither are many requests on one connection, nor fields that are long but end."""
    chunk = b"%x\r\n%b\r\n" % (MOST_HEAD, b"z" * MOST_HEAD)
    raw.sendall(CHUNKED + chunk * 3 + b"0\r\n\r\n")
    assert until(raw, b" 2\n").endswith(b"\r\n\r\n%d 2\n" % (3 * MOST_HEAD))

    for _ in range(15):
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + FIELD + b"\r\n")
        assert until(raw, b"\n0 2\n").startswith(b"HTTP/1.1 200 OK")


def test_a_trailer_adds_no_field(raw: socket.socket) -> None:
    """The application sees those of the header, also if all of it arrives at once."""
    raw.sendall(CHUNKED + b"2\r\nok\r\n0\r\nX-Late: 1\r\n\r\n")

    assert until(raw, b" 2\n").endswith(b"\r\n\r\n2 2\n")


@pytest.mark.parametrize(("requests", "begun"), [(0, b""), (0, b"GET / HTTP/1.1\r\nHost"), (1, b"GET /")])
def test_a_head_that_does_not_come_is_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch, requests: int, begun: bytes
) -> None:
    """The first one of a connection, and any later one."""
    monkeypatch.setattr(uvicorn_protocol, "HEAD_SECONDS", 0.1)
    with (
        serving(counting, http=BoundedProtocol, lifespan="off") as client,
        socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as raw,
    ):
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
        until(raw, b"0 1\n" * requests)
        raw.sendall(begun)
        assert until(raw, b"never") == b""  # the server closes the connection
