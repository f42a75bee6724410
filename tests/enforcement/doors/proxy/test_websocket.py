"""WebSocket connections through the proxy, on both servers that can run it."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from enforcement.model.limits import Limit
from tests.enforcement.doors.conftest import Serve
from tests.enforcement.doors.proxy.conftest import Peer, Running
from tests.enforcement.world import eventually

PLENTY = Limit(name="per-hour", algorithm="fixed_window", quota=100_000, window_seconds=3600)
ONE_SLOT = Limit(name="slots", algorithm="concurrency", quota=1, window_seconds=60)


class Echo:
    """An upstream that sends back what it gets, and does what some texts say."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.codes: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        self.scopes.append(scope)
        await receive()
        if scope["path"] == "/refused":
            headers = [(b"x-why", b"no"), (b"content-type", b"text/plain")]
            await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": b"short and stout"})
            return
        subprotocol = next(iter(scope["subprotocols"]), None)
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": [(b"x-from", b"upstream")]})
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("text") == "close":
                await send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
                return
            if message.get("text") == "die":
                raise RuntimeError("on purpose")
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
        self.codes.append(message["code"])


class Client:
    """A WebSocket client on a connection to the proxy."""

    def __init__(self, proxy: Running, token: str, path: str = "/", *subprotocols: str) -> None:
        self.raw: socket.socket = proxy.connect()
        self.peer = WSConnection(ConnectionType.CLIENT)
        fields = [(b"X-API-Key", token.encode()), (b"Sec-WebSocket-Protocol-X", b"1"), (b"X-Odd", b"caf\xe9")]
        self.send(Request(host="door", target=path, extra_headers=fields, subprotocols=list(subprotocols)))

    def send(self, event: Event) -> None:
        self.raw.sendall(self.peer.send(event))

    def next(self) -> Event:
        """Return the next event from the other side."""
        while True:
            for event in self.peer.events():
                return event
            data = self.raw.recv(65_536)
            self.peer.receive_data(data or None)

    def message(self) -> Any:
        """Return the next message, whole."""
        parts: list[Any] = []
        while True:
            event = self.next()
            assert isinstance(event, (TextMessage, BytesMessage))
            parts.append(event.data)
            if event.message_finished:
                return "".join(parts) if isinstance(event, TextMessage) else b"".join(parts)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def door(start: Callable[..., Running], serve: Serve, echo: Echo) -> Iterator[Running]:
    """Give a proxy before the upstream."""
    return start(SLUICEGATE_UPSTREAM_URL=str(serve(echo).base_url).rstrip("/"))


def test_messages_pass_in_both_directions(door: Running, echo: Echo, token_of) -> None:
    """Texts, bytes, empty and large ones; the upstream sees who sent them, and not the token."""
    client = Client(door, token_of(PLENTY), "/a%2Fb?x=%41", "chat", "other")

    accepted = client.next()
    assert isinstance(accepted, AcceptConnection)
    assert accepted.subprotocol == "chat"
    assert (b"x-from", b"upstream") in accepted.extra_headers
    for sent in ("text", "", "ä" * 200_000):
        client.send(TextMessage(sent))
        assert client.message() == sent
    for data in (b"\0\xff", b"x" * 3_000_000):
        client.send(BytesMessage(data))
        assert client.message() == data
    scope = echo.scopes[0]
    fields = dict(scope["headers"])
    assert (scope["raw_path"], scope["query_string"]) == (b"/a%2Fb", b"x=%41")
    assert scope["subprotocols"] == ["chat", "other"]
    assert fields[b"x-odd"] == b"caf\xe9"
    assert fields[b"x-forwarded-for"] == b"127.0.0.1"
    assert fields[b"x-forwarded-proto"] == b"http"
    assert b"x-api-key" not in fields


def test_a_ping_is_answered_while_nothing_else_is_said(door: Running, token_of) -> None:
    """By the server of the proxy, which keeps its own connection alive."""
    client = Client(door, token_of(PLENTY))
    client.next()
    client.send(Ping(b"there?"))

    assert client.next() == Pong(b"there?")


def test_each_side_learns_how_the_other_closed(door: Running, echo: Echo, token_of) -> None:
    """Code and reason pass."""
    token = token_of(PLENTY)
    client = Client(door, token)
    client.next()
    client.send(TextMessage("close"))
    assert client.next() == CloseConnection(4001, "as asked")

    client = Client(door, token)
    client.next()
    client.send(CloseConnection(4002, "enough"))
    assert eventually(lambda: echo.codes == [4002])


def test_an_upstream_that_breaks_off_closes_with_an_error(door: Running, token_of) -> None:
    """The client must not take it for a regular end."""
    client = Client(door, token_of(PLENTY))
    client.next()
    client.send(TextMessage("die"))

    closed = client.next()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1011


@pytest.mark.parametrize("kind", ["uvicorn"], indirect=True)
def test_a_message_in_endless_parts_is_too_long(start, scripted, token_of) -> None:
    """Each of them is empty, and has to be kept all the same."""

    def script(peer: Peer) -> None:
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", peer.head())
        assert key is not None
        proof = base64.b64encode(
            hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        )
        accepted = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        peer.send(accepted + b"Sec-WebSocket-Accept: " + proof + b"\r\n\r\n\x01\x00")
        while True:
            peer.send(b"\x00\x00" * 10_000)

    client = Client(start(scripted(script)), token_of(PLENTY))
    assert isinstance(client.next(), AcceptConnection)

    closed = client.next()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1009


def test_a_refusal_of_the_upstream_passes(door: Running, token_of) -> None:
    """With its status, its fields and its body."""
    client = Client(door, token_of(PLENTY), "/refused")

    refused = client.next()
    assert isinstance(refused, RejectConnection)
    assert refused.status_code == 418
    assert (b"x-why", b"no") in refused.headers
    body = b""
    while not body.endswith(b"stout"):
        part = client.next()
        assert isinstance(part, RejectData)
        body += part.data
    assert body == b"short and stout"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/%6detrics"])
def test_the_pages_of_the_proxy_open_no_upstream(door: Running, echo: Echo, path: str) -> None:
    """They need no token. A connection that needs none must not lead anywhere."""
    refused = Client(door, "no-token", path).next()

    assert isinstance(refused, RejectConnection)
    assert refused.status_code == 404
    assert echo.scopes == []


def test_an_upstream_that_is_away_is_a_bad_gateway(start, token_of) -> None:
    """As for a request."""
    refused = Client(start(SLUICEGATE_UPSTREAM_URL="http://127.0.0.1:1"), token_of(PLENTY)).next()

    assert isinstance(refused, RejectConnection)
    assert refused.status_code == 502


def test_a_connection_holds_its_slot_until_it_ends(door: Running, token_of) -> None:
    """The second is denied, and admitted after the first client has left without a word."""
    token = token_of(ONE_SLOT)
    first = Client(door, token)
    assert isinstance(first.next(), AcceptConnection)

    denied = Client(door, token).next()
    assert isinstance(denied, RejectConnection)
    assert denied.status_code == 429
    first.raw.close()
    assert eventually(lambda: isinstance(Client(door, token).next(), AcceptConnection))
