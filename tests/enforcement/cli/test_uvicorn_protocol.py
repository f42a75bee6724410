"""What a client may send to uvicorn, and for how long it may send and read nothing."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from enforcement.cli import uvicorn_protocol
from enforcement.cli.uvicorn_protocol import MOST_GATHERED, MOST_HEAD, BoundedProtocol, GatheringTransport
from enforcement.http.slow_clients import cut_off
from tests.enforcement.doors.conftest import serving
from tests.enforcement.world import eventually

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


def test_a_head_of_very_many_fields_is_refused(raw: socket.socket) -> None:
    """Its fields would take several times the memory of its bytes."""
    raw.sendall(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 2_000)

    assert until(raw, b"\r\n\r\n") in (b"", uvicorn_protocol._TOO_LARGE)


def test_unfinished_heads_have_a_bound_together(raw: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs a token to send one. The long ones are refused, and one that ends makes room."""
    monkeypatch.setattr(uvicorn_protocol, "MOST_OF_HEADS", 150_000)
    before, begun = BoundedProtocol.of_heads, b"GET / HTTP/1.1\r\nHost: x\r\n" + FIELD
    raw.sendall(begun)
    assert eventually(lambda: BoundedProtocol.of_heads >= before + len(begun), 20)
    with socket.create_connection(raw.getpeername(), timeout=20) as other:
        other.sendall(begun)
        assert until(other, b"\r\n\r\n") == uvicorn_protocol._TOO_LARGE

    raw.sendall(b"\r\n")
    assert until(raw, b"\n0 2\n").startswith(b"HTTP/1.1 200 OK")
    assert eventually(lambda: BoundedProtocol.of_heads <= before, 20)


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


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
POSTED = b"POST / HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"Content-Length: 7\r\n\r\na=1&b=2"
IN_CHUNKS = POSTED.replace(
    b"Content-Length: 7\r\n\r\na=1&b=2", b"Transfer-Encoding: chunked\r\n\r\n3\r\na=1\r\n4\r\n&b=2\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("posted", [POSTED, IN_CHUNKS])
@pytest.mark.parametrize("step", [1, 1_000])
def test_a_body_behind_an_upgrade_that_is_ignored_arrives(raw: socket.socket, posted: bytes, step: int) -> None:
    """``curl --http2`` and Java ask for HTTP/2 like this. The connection goes on, also if all comes byte by byte."""
    plain = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"

    for request, answer in ((posted, b"\r\n\r\n7 5\n"), (plain, b"\r\n\r\n3 2\n"), (posted, b"\r\n\r\n7 5\n")):
        for at in range(0, len(request), step):
            raw.sendall(request[at : at + step])
        assert until(raw, answer).startswith(b"HTTP/1.1 200 OK")


def test_requests_around_an_ignored_upgrade_stay_apart(raw: socket.socket) -> None:
    """They may come at once, and none is taken for the body of another."""
    raw.sendall(POSTED + b"GET / HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"\r\n" + IN_CHUNKS + POSTED)

    answers = b""
    while answers.count(b" 5\n") < 3:
        part = raw.recv(65_536)
        assert part, answers
        answers += part
    assert [answer.rpartition(b"\r\n\r\n")[2] for answer in answers.split(b"HTTP/1.1")[1:]] == [
        b"7 5\n",
        b"0 4\n",
        b"7 5\n",
        b"7 5\n",
    ]


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: gzip", b"Content-Length: 7\r\nTransfer-Encoding: chunked"])
def test_an_upgrade_does_not_hide_a_body_without_an_end(raw: socket.socket, framing: bytes) -> None:
    """What follows could be taken for another request."""
    raw.sendall(POSTED.replace(b"Content-Length: 7", framing))

    assert until(raw, b"never").startswith(b"HTTP/1.1 400 Bad Request")


@contextmanager
def impatient(app: Any = counting, seconds: float = 0.1) -> Iterator[socket.socket]:
    """Connect to an application on a uvicorn that waits for a client no longer than this."""
    protocol = partial(BoundedProtocol, client_seconds=seconds)
    with (
        serving(app, http=protocol, lifespan="off") as client,
        socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as raw,
    ):
        yield raw


@pytest.mark.parametrize("begun", [CHUNKED + b"1\r\nx\r\n", POSTED[:-2], CHUNKED])
def test_a_body_that_does_not_come_is_not_awaited_for_ever(begun: bytes) -> None:
    """The client learns why."""
    cut = cut_off["body"]
    with impatient() as raw:
        raw.sendall(begun)
        answer = until(raw, b"never")

    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert answer.endswith(b"\r\n\r\nThe body of the request did not come in time.\n")
    assert cut_off["body"] == cut + 1


def test_a_body_that_comes_slowly_is_awaited() -> None:
    """As long as some of it comes. Each part begins the time anew."""
    with impatient(seconds=0.4) as raw:
        raw.sendall(CHUNKED)
        for _ in range(8):
            raw.sendall(b"1\r\nx\r\n")
            threading.Event().wait(0.1)
        raw.sendall(b"0\r\n\r\n")
        assert until(raw, b"8 2\n").startswith(b"HTTP/1.1 200 OK")


def test_an_application_that_does_not_read_is_no_slow_client() -> None:
    """Whoever has to wait for it may send nothing."""
    may_read = asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        asyncio.get_running_loop().call_later(0.5, may_read.set)
        await may_read.wait()
        await counting(scope, receive, send)

    with impatient(waiting) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n")
        raw.sendall(b"x" * 400_000)
        assert until(raw, b"400000 2\n").startswith(b"HTTP/1.1 200 OK")


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """Send a response without an end, until the client leaves."""
    await receive()
    leaving = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not leaving.done():
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
    assert leaving.result()["type"] == "http.disconnect"
    scope["state"]["left"].set()


def test_a_response_that_is_not_read_is_not_kept_for_ever() -> None:
    """The application learns that its client has left."""
    left, cut = threading.Event(), cut_off["reading"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await endless({**scope, "state": {"left": left}}, receive, send)

    with impatient(app) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert left.wait(20)

    assert cut_off["reading"] == cut + 1


def test_a_response_that_is_read_slowly_goes_on() -> None:
    """As long as some of it is taken."""
    left = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await endless({**scope, "state": {"left": left}}, receive, send)

    with impatient(app, 0.4) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(10):
            assert raw.recv(2_000_000)
            assert not left.wait(0.1)


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    """Answer ``/whole`` at once, ``/long`` with parts of 8 KiB without a pause, and others in two parts with a wait."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/long":
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * 8_192, "more_body": True})
    elif scope["path"] != "/whole":
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await receive()
        await receive()  # until the client leaves
    await send({"type": "http.response.body", "body": b"last"})


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many bytes were written at a time."""
    sizes: list[int] = []

    class Noting:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def write(self, data: bytes) -> None:
            sizes.append(len(data))
            self._transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

    def gathering(transport: Any, loop: asyncio.AbstractEventLoop) -> GatheringTransport:
        return GatheringTransport(Noting(transport), loop)  # type: ignore[arg-type]

    monkeypatch.setattr(uvicorn_protocol, "GatheringTransport", gathering)
    return sizes


def test_a_response_that_is_there_is_written_at_once(written: list[int]) -> None:
    with serving(streaming, http=BoundedProtocol, lifespan="off") as client:
        assert client.get("/whole").text == "last"

    assert len(written) == 1


def test_what_waits_to_be_written_has_a_bound(written: list[int]) -> None:
    """Else the transport would not know when the application has to wait for a slow client."""
    with serving(streaming, http=BoundedProtocol, lifespan="off") as client:
        assert client.get("/long").text == "x" * 8_192 * 64 + "last"

    assert 16 <= len(written) <= 40
    assert max(written) < 2 * MOST_GATHERED


def test_the_first_part_of_a_response_does_not_wait_for_the_second() -> None:
    with (
        serving(streaming, http=BoundedProtocol, lifespan="off") as client,
        socket.create_connection(("127.0.0.1", client.base_url.port), timeout=20) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

        assert until(connection, b"first\r\n").startswith(b"HTTP/1.1 200 OK")


def test_a_response_is_written_before_its_connection_closes(raw: socket.socket) -> None:
    raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert until(raw, b"the end").endswith(b"\r\n\r\n0 2\n")
