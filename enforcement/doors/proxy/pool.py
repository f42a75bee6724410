"""The connections to one upstream."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, TypeVar

from enforcement.doors.proxy.connection import MOST_BUFFERED, Connection, ReadBuffer, UpstreamError
from enforcement.doors.proxy.places import USUAL_PLACES, Places, SharedPlaces

CONNECT_SECONDS: Final = 5.0
# Shorter than upstreams keep idle connections (uvicorn: 5 s), or one would close just as it is used again.
IDLE_SECONDS: Final = 2.0
AVOID_SECONDS: Final = 30.0
"""How long an address of an upstream that has several comes last after it could not be reached."""

WATCH_SECONDS: Final = 0.01
"""After which a request is watched for its client to leave. Most have ended by then, and cost nothing."""

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)


class PoolFull(Exception):
    """As many requests as may be are under way to the upstream."""


class Pool:
    """
    Opens connections to one upstream, and keeps them for the next requests.

    Args:
        host: Name or address of the upstream.
        port: Its port.
        tls: Whether it speaks TLS.
        places: How many requests may be under way, and how they are shared.
    """

    def __init__(self, host: str, port: int, *, tls: bool, places: Places = USUAL_PLACES) -> None:
        self._host, self._port = host, port
        self.name: Final = f"{host}:{port}"
        self._tls = _context() if tls else None
        self._is_address = _is_address(host)
        self._failed: dict[str, float] = {}  # when an address could last not be reached
        self._idle: list[Connection] = []
        self._buffer = ReadBuffer()
        self.places: Final = SharedPlaces(places)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweeping: asyncio.TimerHandle | None = None
        self._young: list[Callable[[], None]] = []
        self._older: list[Callable[[], None]] = []
        self._watching = False

    def enter(self, project: str, token: str) -> bool:
        """
        Return whether another request may be under way now. If not, it must :meth:`enter_later`.

        Args:
            project, token: Whose share it counts for, until it has to :meth:`leave`.
        Raises:
            Crowded: They have their share already.
        """
        places = self.places
        places.claim(project, token)
        if places.left <= 0:
            return False
        places.left -= 1
        return True

    async def enter_later(self, project: str, token: str) -> None:
        """
        Wait until a request may be under way that could not :meth:`enter`. It must :meth:`leave` then.

        Raises:
            PoolFull: None has ended in time.
        """
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await place
        except BaseException as exc:
            self.places.give_up(project, token)
            if place.done() and not place.cancelled():
                self._release()  # it came just as nobody waited for it any more
            if isinstance(exc, TimeoutError):
                self.places.refused["full"] += 1
                raise PoolFull from exc
            raise

    def _release(self) -> None:
        """Give the place of a request that has ended to the one that waits longest, if any."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.places.left += 1

    def call_soon_enough(self, call: Callable[[], None]) -> None:
        """Call a function once, after one to two times WATCH_SECONDS. All of them share a timer."""
        self._young.append(call)
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_later(WATCH_SECONDS, self._watch)

    def _watch(self) -> None:
        due, self._older, self._young = self._older, self._young, []
        self._watching = bool(self._older)
        if self._watching:
            asyncio.get_running_loop().call_later(WATCH_SECONDS, self._watch)
        for call in due:
            call()

    def take(self) -> Connection | None:
        """Return an idle connection, or None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                if asyncio.get_running_loop().time() - connection.idle_since < IDLE_SECONDS:
                    return connection
                connection.close()
        return None

    async def connect(self) -> Connection:
        """
        Return a new connection.

        Raises:
            TimeoutError: The upstream did not answer in time.
            UpstreamError: It could not be reached.
        """
        loop = asyncio.get_running_loop()
        return (await self._open(lambda: Connection(loop, self._buffer)))[1]

    async def stream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """
        Return the two ends of a new connection that is not for requests.

        Raises:
            TimeoutError: The upstream did not answer in time.
            UpstreamError: It could not be reached.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(MOST_BUFFERED, loop)
        transport, protocol = await self._open(lambda: asyncio.StreamReaderProtocol(reader, loop=loop))
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _open(self, protocol: Callable[[], _Protocol]) -> tuple[asyncio.Transport, _Protocol]:
        loop, name = asyncio.get_running_loop(), self._host if self._tls else None
        failure: Exception = TimeoutError()
        try:
            async with asyncio.timeout(CONNECT_SECONDS) as whole:
                addresses = await self._addresses()
                for position, address in enumerate(addresses):
                    # An address that is silent must leave time for the others.
                    share = ((whole.when() or 0.0) - loop.time()) / (len(addresses) - position)
                    try:
                        async with asyncio.timeout(share):
                            return await loop.create_connection(
                                protocol, address, self._port, ssl=self._tls, server_hostname=name
                            )
                    except OSError as exc:  # TimeoutError and ssl.SSLError are, too
                        failure = exc
                        self._avoid(address)
            raise failure
        except TimeoutError:
            raise
        except (OSError, UnicodeError) as exc:  # UnicodeError: DNS cannot have that name
            raise UpstreamError(str(exc)) from exc

    async def _addresses(self) -> list[str]:
        """Return the addresses of the upstream, those that could not be reached of late at the end."""
        if self._is_address:
            return [self._host]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        since = loop.time() - AVOID_SECONDS
        addresses = dict.fromkeys(str(address[0]) for *_, address in found)
        return sorted(addresses, key=lambda address: self._failed.get(address, since) > since)

    def _avoid(self, address: str) -> None:
        now = asyncio.get_running_loop().time()
        self._failed = {other: at for other, at in self._failed.items() if now - at < AVOID_SECONDS} | {address: now}

    def leave(self, connection: Connection | None, project: str, token: str) -> None:
        """Keep the connection of a request that has ended if it can be used again, and let another request enter."""
        self.places.give_up(project, token)
        self._release()
        if connection is None:
            return
        if not connection.reusable:
            connection.abort(UpstreamError("ended"))
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(IDLE_SECONDS, self._sweep)

    def close(self) -> None:
        """Close all idle connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _sweep(self) -> None:
        """Close the connections that have been idle for long."""
        loop = asyncio.get_running_loop()
        since = loop.time() - IDLE_SECONDS
        for connection in self._idle:
            if connection.idle_since <= since:
                connection.close()
        self._idle = [connection for connection in self._idle if connection.idle_since > since]
        self._sweeping = loop.call_later(IDLE_SECONDS, self._sweep) if self._idle else None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
