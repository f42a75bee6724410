import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from controlplane.operations.webhooks.models import Destination
from tests.factories import DestinationFactory

LOOPBACK = ["127.0.0.0/8", "::1/128"]
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What a receiver has got."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """
    A server on loopback that keeps each request.

    ``answers`` has what it does for each of them, bytes to send or a function of the connection, and then sends OK.
    """

    listener: socket.socket
    answers: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/hook"

    def serve(self) -> None:
        with suppress(OSError):  # the listener is closed at the end of the test
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._handle, args=[connection], daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.requests.append(_read(connection))
            answer = self.answers.pop(0) if self.answers else OK
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)

    def hang(self, connection: socket.socket) -> None:
        """Say nothing until the test has ended."""
        self.stopped.wait(30)

    def drip(self, connection: socket.socket) -> None:
        """Send a header that does not end, one byte after the other, each in time."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.stopped.wait(0.02):
            connection.sendall(b"x")


def _read(connection: socket.socket) -> Request:
    with connection.makefile("rb") as text:
        line = text.readline().decode().strip()
        headers = {}
        while field_line := text.readline().strip():
            name, _, value = field_line.decode().partition(": ")
            headers[name.lower()] = value
        return Request(line, headers, text.read(int(headers.get("content-length", 0))))


@pytest.fixture
def receiver(settings) -> Iterator[Receiver]:
    """A receiver whose address the setting allows."""
    settings.ALERT_NETWORKS = LOOPBACK
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = Receiver(listener)
        threading.Thread(target=receiver.serve, daemon=True).start()
        yield receiver
        receiver.stopped.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()


@pytest.fixture
def webhook(db, receiver: Receiver) -> Callable[..., Destination]:
    """A destination at the receiver."""

    def make(**fields: Any) -> Destination:
        return DestinationFactory(**{"url": receiver.url, **fields})

    return make
