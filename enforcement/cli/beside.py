"""
Let uvicorn serve an ASGI application on a second port, in each process and event loop of another server.

h2corn refuses HTTP/1.0, which nginx speaks to a service unless it is told otherwise. Metrics may have a port that no
client reaches.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from enforcement.http.asgi import App, Message, Receive, Scope, Send


class Beside:
    """
    An ASGI application that runs a second server, from the end of its start until its shutdown.

    Args:
        app: The application.
        served: What the second server serves. None: the same application.
        listeners: Where the second server listens. All processes may share them.
        options: Those of ``uvicorn.Config``.
    """

    def __init__(
        self,
        app: App,
        listeners: Sequence[socket.socket],
        options: Mapping[str, Any],
        served: App | None = None,
    ) -> None:
        self._app = app
        self._served = served or app
        self._listeners = list(listeners)
        self._options = options

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Hand a request on, or run the second server during the life of the application."""
        # The application's own awaitable: a coroutine around it would cost each of its steps.
        return (self._live if scope["type"] == "lifespan" else self._app)(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = _Server(uvicorn.Config(self._served, lifespan="off", **self._options))
        running: list[asyncio.Task[None]] = []

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and running:
                server.should_exit = True
                await asyncio.wait(running)
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                running.append(asyncio.create_task(server.serve(self._listeners)))
            await send(message)

        await self._app(scope, received, sent)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the other server."""
        yield


def monitored(app: App, monitor: Callable[[], App], host: str, first: int, workers: int) -> App | None:
    """
    Return an application beside which another one, such as that of metrics, has a port of its own in each process.

    Args:
        monitor: Returns the other application.
        first: The port of the first of so many *workers*. The next ones take those after it.
    Returns:
        None if no port is free.
    """
    from enforcement.cli.uvicorn_protocol import BoundedProtocol

    options = {"http": BoundedProtocol, "log_config": None, "access_log": False, "proxy_headers": False}
    for port in range(first, first + workers):
        try:
            listeners = listen(host, port)
        except OSError:
            continue
        return Beside(app, listeners, options, monitor())
    return None


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen on all addresses of a host. Raises OSError."""
    addresses = dict.fromkeys(
        (family, address)
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    )
    return [
        socket.create_server(address[:2], family=family, backlog=2_048, dualstack_ipv6=False)
        for family, address in addresses
    ]
