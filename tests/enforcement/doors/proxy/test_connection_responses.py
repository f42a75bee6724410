"""Responses that end wrong, on both servers that can run the proxy, to clients of HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.docs.tls import certificate
from tests.enforcement.doors.proxy.conftest import Peer, Running, request
from tests.enforcement.doors.proxy.test_connection import OK, PLENTY, always, once

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n", b""])
def test_a_response_that_ends_before_its_body_never_looks_whole(proxy, token_of, kind: str, framing: bytes) -> None:
    """The client gets its head at once, and then no end of it, neither by HTTP/1.1 nor by HTTP/2."""
    token, has_head = token_of(PLENTY), threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(HEAD + framing + b"\r\n")
        assert has_head.wait(10)
        peer.reset()

    proxy.upstream.script = script
    exchange = proxy.request("GET /", token)
    exchange.until(b"\r\n\r\n")
    has_head.set()
    answer = exchange.rest()

    assert not answer.endswith(b"\r\n0\r\n\r\n")
    assert b"content-length: 0" not in answer.lower()
    if kind == "h2corn":
        with httpx2.Client(http1=False, http2=True) as client, pytest.raises(httpx2.RemoteProtocolError):
            client.get(proxy.catch_up(), headers={"X-API-Key": token})


@pytest.mark.parametrize(
    "response",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\nok",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 600 Odd\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["no chunk", "a coding", "chunks within", "low status", "high status"],
)
def test_a_response_that_no_client_could_read_is_a_bad_gateway(proxy, token_of, response: bytes) -> None:
    """Nothing of it has been sent yet."""
    proxy.upstream.script = once(response)

    assert proxy.request("GET /", token_of(PLENTY)).status == 502


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_a_status_without_a_body_needs_no_length(proxy, token_of, status: bytes) -> None:
    """Neither the client nor its server waits for a body, and their connection is used again."""
    proxy.upstream.script = always(b"HTTP/1.1 " + status + b"\r\nContent-Length: 77\r\nX-Odd: 1 \t\r\n\r\n")
    token = token_of(PLENTY)

    answer = proxy.request("GET /", token)
    assert b"\r\nx-odd: 1\r\n" in answer.until(b"\r\n\r\n")
    proxy.upstream.script = always(OK)
    proxy.upstream.reset()
    answer.raw.sendall(request("GET /", token))
    assert answer.until(b"ok").count(b"HTTP/1.1 200 OK") == 1


def test_the_end_of_tls_is_the_end_of_a_response(start, token_of, tmp_path: Path) -> None:
    """Without it, anybody between the two could have ended a response that ends with its connection."""
    made, key = certificate(tmp_path)
    listening = socket.create_server(("127.0.0.1", 0))
    answering = threading.Thread(target=answer_by_tls, args=(listening, made, key))
    answering.start()
    url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    proxy, token = start(SLUICEGATE_UPSTREAM_URL=url, SSL_CERT_FILE=str(made)), token_of(PLENTY)

    whole, cut = (proxy.request("GET /\nConnection: close", token).rest() for _ in range(2))

    assert whole.endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    assert cut.endswith(b"\r\n\r\n2\r\nok\r\n")
    answering.join(10)
    listening.close()


def answer_by_tls(listening: socket.socket, made: Path, key: Path) -> None:
    """Answer one request and end TLS, and then one without ending it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    for ends in (True, False):
        secured = context.wrap_socket(listening.accept()[0], server_side=True)
        secured.recv(65_536)
        secured.sendall(HEAD + b"\r\nok")
        if ends:
            with suppress(OSError):
                secured.unwrap()
        socket.socket(fileno=secured.detach()).close()


def test_the_trailer_of_a_request_adds_no_field(proxy: Running, token_of) -> None:
    """Proxies check the header of a request. What follows its body has passed none of that."""
    heads: list[bytes] = []

    def script(peer: Peer) -> None:
        while head := peer.head():
            heads.append(head)
            peer.file.readline()
            peer.body(9)
            peer.send(OK)

    proxy.upstream.script = script
    body = b"2\r\nok\r\n0\r\nX-Late: 1\r\nX-API-Key: another\r\n\r\n"

    assert proxy.request("POST /\nTransfer-Encoding: chunked", token_of(PLENTY), body).status == 200
    assert b"x-late" not in heads[0]


def test_trace_goes_no_further(proxy: Running, token_of) -> None:
    """Its response would show the credential of the upstream."""
    proxy.upstream.script = always(OK)

    assert proxy.request("TRACE /", token_of(PLENTY)).status == 501
    assert proxy.upstream.connections == 0
