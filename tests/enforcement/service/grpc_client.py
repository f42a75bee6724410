"""A client of gRPC that can send what no real one would, on top of the frames of ``h2``."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

RLS = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
EXT_AUTHZ = "/envoy.service.auth.v3.Authorization/Check"

MOST_CALLS = 900
"""Calls of one connection. hypercorn ends one after 1,000."""

Fields = Iterable[tuple[str, str]]


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> str:
        """The status of gRPC, or of HTTP if there is none."""
        return self.trailers.get("grpc-status", f"HTTP {self.headers.get(':status')}")

    @property
    def message(self) -> bytes:
        """The message of an answer that has exactly one."""
        assert self.body[:1] == b"\0", self
        assert int.from_bytes(self.body[1:5], "big") == len(self.body) - 5
        return self.body[5:]


class Channel:
    """One connection of HTTP/2 without TLS."""

    def __init__(self, port: int, timeout: float = 10.0) -> None:
        self._address, self._calls = (port, timeout), 0
        self._open()

    def _open(self) -> None:
        port, timeout = self._address
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        # A call is sent in two parts. Without this, the second waits up to 40 ms for the first to be acknowledged.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.http = H2Connection(H2Configuration(header_encoding="utf-8", validate_outbound_headers=False))
        self.http.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.closed = False
        self.flush()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # a test may have closed this direction
            self.socket.sendall(self.http.data_to_send())

    def begin(self, path: str, *, method: str = "POST", headers: Fields = (), ends: bool = False) -> int:
        """Open a stream and return its number."""
        stream = self.http.get_next_available_stream_id()
        fixed = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "service")]
        usual = [] if any(name == "content-type" for name, _ in headers) else [("content-type", "application/grpc")]
        self.http.send_headers(stream, [*fixed, *usual, ("te", "trailers"), *headers], end_stream=ends)
        self.answers[stream] = Answer()
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, ends: bool = True) -> None:
        """Send the data of a stream as the windows of flow control allow, unless its answer has come."""
        left, at = len(data), 0
        while left or ends:
            size = min(left, self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size)
            if left and not size:
                self.read()
                if self.answers[stream].ended or self.answers[stream].reset is not None:
                    return
                continue
            left -= size
            self.http.send_data(stream, data[at : at + size], end_stream=ends and not left)
            self.flush()
            at += size
            if not left:
                return

    def reset(self, stream: int) -> None:
        self.http.reset_stream(stream, ErrorCodes.CANCEL)
        self.flush()

    def read(self) -> bool:
        """Read what has come, wait for it if nothing has, and return whether the connection is still open."""
        data = self.socket.recv(65_536)
        self.closed = self.closed or not data
        for event in self.http.receive_data(data) if data else ():
            self._keep(event)
        self.flush()
        return not self.closed

    def wait(self, stream: int) -> Answer:
        answer = self.answers[stream]
        while not answer.ended and answer.reset is None and self.read():
            pass
        return answer

    def call(self, path: str, body: bytes, *, method: str = "POST", headers: Fields = ()) -> Answer:
        """Send one whole body, and return the answer."""
        self._calls += 1
        if self._calls % MOST_CALLS == 0:
            self.socket.close()
            self._open()
        stream = self.begin(path, method=method, headers=headers)
        self.send(stream, body)
        return self.wait(stream)

    def ask(self, path: str, message: bytes) -> bytes:
        """Send one message, and return the message of the answer, whose status must be 0."""
        answer = self.call(path, framed(message))
        assert answer.status == "0", answer
        return answer.message

    def _keep(self, event: Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0, Answer())
        if isinstance(event, ResponseReceived):
            answer.headers = dict(event.headers)
        elif isinstance(event, DataReceived):
            answer.body += event.data
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            answer.reset = event.error_code
        elif isinstance(event, ConnectionTerminated):
            self.closed = True


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def timed(channel: Channel, path: str, message: bytes) -> tuple[float, bytes]:
    """Return the seconds that an answer took, and its message."""
    began = time.monotonic()
    answer = channel.ask(path, message)
    return time.monotonic() - began, answer
