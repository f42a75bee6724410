"""
A load generator that costs little: one thread, plain sockets, HTTP/1.1 and gRPC.

An asyncio client takes more time for a request than some servers do, so that the figures would be those of the client.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, perf_counter_ns

SILENCE_SECONDS = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD_END, _LAST_CHUNK = b"\r\n\r\n", b"\r\n0\r\n\r\n"
_PIECE = 262_144
Spans = tuple[list[int], int]
"""Nanoseconds of each request, and of all of them together."""


class BadAnswer(Exception):
    """An answer that says something else than that the request may pass: nothing can be told of this run."""


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    data: bytes = b""
    began: int = 0


def get(port: int, fields: str, *, connections: int, seconds: float, path: str = "/") -> Spans:
    """
    Ask by HTTP/1.1 for so long. Each connection sends its next request when it has the answer to the last.

    Args:
        port: Of a server on this host.
        fields: Lines of the header, each with its end of line.
        connections: How many requests wait at the same time.
        seconds: How long new requests are sent.
        path: What is asked for.
    Raises:
        BadAnswer: An answer was not 200 or says that its limiter was degraded, the server closed a connection, or it
            said nothing for ten seconds.
    """
    return _press(port, _request("GET", path, fields), connections, seconds)


def post(port: int, fields: str, body: bytes, *, connections: int, seconds: float, path: str) -> Spans:
    """Send a JSON body by HTTP/1.1 for so long. The answer may come in chunks. See :func:`get`."""
    fields += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return _press(port, _request("POST", path, fields) + body, connections, seconds)


def leave(port: int, fields: str, body: bytes, *, seconds: float, path: str) -> Spans:
    """Send a JSON body for so long, on a new connection each time, and leave when the answer has begun."""
    fields += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    request, spans = _request("POST", path, fields) + body, []
    start = perf_counter_ns()
    while perf_counter_ns() - start < seconds * 1e9:
        began, client = perf_counter_ns(), _Client(_connect(port))
        with client.socket:
            client.socket.sendall(request)
            while _HEAD_END not in client.data:
                _is_whole(client)
        spans.append(perf_counter_ns() - began)
    return spans, perf_counter_ns() - start


def _request(method: str, path: str, fields: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n".encode()


def _press(port: int, request: bytes, connections: int, seconds: float) -> Spans:
    spans: list[int] = []
    clients = {client.socket.fileno(): client for client in (_Client(_connect(port)) for _ in range(connections))}
    with select.epoll() as readable:
        for number in clients:
            readable.register(number, select.EPOLLIN)
        start = perf_counter_ns()
        until = start + int(seconds * 1e9)
        for client in clients.values():
            client.began = perf_counter_ns()
            client.socket.sendall(request)
        busy = connections
        while busy:
            ready = readable.poll(SILENCE_SECONDS)
            if not ready:
                raise BadAnswer(f"Port {port} said nothing for {SILENCE_SECONDS:.0f} s.")
            for number, _ in ready:
                client = clients[number]
                if not _is_whole(client):
                    continue
                now = perf_counter_ns()
                spans.append(now - client.began)
                if now < until:
                    client.data, client.began = b"", now
                    client.socket.sendall(request)
                else:
                    busy -= 1
        elapsed = perf_counter_ns() - start
    for client in clients.values():
        client.socket.close()
    return spans, elapsed


def _is_whole(client: _Client) -> bool:
    """Read what has come, and return whether the answer is complete."""
    piece = client.socket.recv(_PIECE)
    data = client.data = client.data + piece
    head, end, body = data.partition(_HEAD_END)
    if not piece or (end and (data[9:12] != b"200" or b"egraded" in head)):
        raise BadAnswer(f"got {data[:300]!r}")
    length = _LENGTH.search(head) if end else None
    return len(body) >= int(length[1]) if length else data.endswith(_LAST_CHUNK)


# gRPC: the frames of RFC 9113 that a client with small messages needs. Header fields of answers are not decoded.

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW = 2**31 - 1


@dataclass(slots=True)
class _Calls:
    """One connection on which calls are made, each on a stream of its own."""

    head: bytes
    message: bytes
    good: bytes
    next: int = 1
    began: dict[int, int] = field(default_factory=dict)
    spans: list[int] = field(default_factory=list)
    answers: int = 0

    def call(self) -> bytes:
        """Return the frames of a new call."""
        stream, self.next = self.next, self.next + 2
        self.began[stream] = perf_counter_ns()
        body = b"\0" + len(self.message).to_bytes(4, "big") + self.message
        return _frame(_HEADERS, _END_HEADERS, stream, self.head) + _frame(_DATA, _END_STREAM, stream, body)

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes | None:
        """Take a frame. Return what is to be sent for it, or None if a call has ended."""
        if kind == _DATA and payload:
            if payload[5:7] != self.good:
                raise BadAnswer(f"got {payload[:300]!r}")
            self.answers += 1
        elif kind in (_RESET, _GOAWAY):
            raise BadAnswer(f"got frame {kind} with {payload[:300]!r}")
        elif kind == _SETTINGS and not flags & _ACK:
            return _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            return _frame(_PING, _ACK, 0, payload)
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.spans.append(perf_counter_ns() - self.began.pop(stream))
            return None
        return b""


def call(port: int, path: str, message: bytes, good: bytes, *, streams: int, seconds: float) -> Spans:
    """
    Call a method of gRPC over one connection for so long. So many calls wait at the same time.

    Args:
        port: Of a server on this host.
        path: Of the method.
        message: Of each call.
        good: The first two bytes of the message of each answer.
        streams: How many calls wait at the same time.
        seconds: How long new calls are made.
    Raises:
        BadAnswer: An answer was another one, or the connection ended.
    """
    calls = _Calls(_head(path), message, good)
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, (4).to_bytes(2, "big") + _window(_WINDOW))
    opening += _frame(8, 0, 0, _window(_WINDOW - 65_535))
    with _connect(port) as connection:
        start, end = perf_counter_ns(), monotonic() + seconds
        connection.sendall(opening + b"".join(calls.call() for _ in range(streams)))
        data = b""
        while calls.began:
            piece = connection.recv(_PIECE)
            if not piece:
                raise BadAnswer("the connection ended")
            data, replies = _each(data + piece, calls.take, calls.call if monotonic() < end else bytes)
            if replies:
                connection.sendall(replies)
        elapsed = perf_counter_ns() - start
    if calls.answers != len(calls.spans):
        raise BadAnswer(f"{len(calls.spans) - calls.answers} of {len(calls.spans)} calls ended without a message")
    return calls.spans, elapsed


def _each(
    data: bytes, take: Callable[[int, int, int, bytes], bytes | None], follow: Callable[[], bytes]
) -> tuple[bytes, bytes]:
    """Take each whole frame. Return the rest of the data, and what is to be sent."""
    at, replies = 0, []
    while len(data) - at >= 9:
        end = at + 9 + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            break
        reply = take(data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + 9 : end])
        replies.append(follow() if reply is None else reply)
        at = end
    return data[at:], b"".join(replies)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _window(size: int) -> bytes:
    return size.to_bytes(4, "big")


def _head(path: str) -> bytes:
    """Return the header fields of a call, none of them indexed: POST, http, path, authority, content type, te."""
    fields = [(b"\x04", path.encode()), (b"\x01", b"service"), (b"\x0f\x10", b"application/grpc")]
    literal = b"".join(name + bytes((len(value),)) + value for name, value in fields)
    return b"\x83\x86" + literal + b"\x00\x02te\x08trailers"


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), SILENCE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
