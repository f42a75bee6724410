"""
The connection that the tasks of an event loop share, with many calls to the store in flight.

All commands of one iteration of the loop leave in one write. :mod:`enforcement.store.connection` does the same for
threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hiredis

from enforcement import fork
from enforcement.store.address import Address
from enforcement.store.connection import ASKING, unconnected
from enforcement.store.errors import StoreError, trouble
from enforcement.store.late_replies import LATE_SECONDS, LOST, SharedLateReply


class AsyncPipe:
    """
    One connection for each event loop, shared by all its tasks. The first call after a loss makes a new one.

    Args:
        address: Called for each new connection; returns where the server is now.
        budget: Seconds that a call may take, including the time to connect.
        on_lost: See :class:`~enforcement.store.connection.SyncPipe`.
        known: Returns the address without I/O, or None if it is unknown; then *address* is called in a thread. Leave
            it out if *address* never does I/O.
    """

    def __init__(
        self,
        address: Callable[[], Address],
        budget: float,
        on_lost: Callable[[Address], None] = lambda address: None,
        known: Callable[[], Address | None] | None = None,
    ) -> None:
        self._address = address
        self._known: Callable[[], Address | None] = known or address
        self._budget = budget
        self._on_lost = on_lost
        self._link: _Link | None = None  # the one used last; nearly always there is a single loop
        self._links: dict[asyncio.AbstractEventLoop, _Link] = {}
        self._retired: weakref.WeakSet[_Link] = weakref.WeakSet()
        fork.register(self)

    def call(self, command: bytes) -> asyncio.Future[Any]:
        """
        Send one encoded command and return a future for its reply.

        The future raises StoreError like :meth:`~enforcement.store.connection.SyncPipe.call`, with one difference: an
        error reply is not raised but returned, as a value of type ``hiredis.ReplyError``.
        """
        link = self._link
        if link is None or link.lost or link.loop is not asyncio.get_running_loop():
            link = self._link_here()
        return link.call(command)

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        """
        Send ``ASKING`` and a command, in one write, to a node that takes over its slot, and return a future of the
        reply.
        """
        link = self._link_here()
        link.call(ASKING).add_done_callback(lambda future: future.cancelled() or future.exception())
        return link.call(command)

    def _link_here(self) -> _Link:
        """Return the connection of the running loop, or a new one if it has none."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None or link.lost:
            # Test clients run each request in a new loop, so connections of closed loops would pile up.
            for other in list(self._links):
                if other.is_closed():
                    self._links.pop(other, None)
            if link is not None:
                self._retired.add(link)  # it may still wait for late replies
            link = self._links[loop] = _Link(self._locate, self._budget, self._on_lost)
        self._link = link
        return link

    async def _locate(self) -> Address:
        known = self._known()
        return known if known is not None else await asyncio.to_thread(self._address)

    def trouble(self, reply: object) -> StoreError:
        """Return the exception for an error reply, and drop the connection if the server has become a replica."""
        found, link = trouble(reply), self._links.get(asyncio.get_running_loop())
        # A connection that has no reply yet was made after this reply arrived, so it leads to the new primary.
        if found.cause == "readonly" and link is not None and link.answered:
            link.drop(StoreError("connection", "the server became a replica", executed=False))
        return found

    def renew(self) -> None:
        """
        Open a new connection for the next calls, while calls in flight keep the old one. Any thread may call this.
        """
        for link in self._give_up():
            self._retired.add(link)
            link.retire()

    def _give_up(self) -> list[_Link]:
        self._link = None
        links = [self._links.pop(loop, None) for loop in list(self._links)]
        return [link for link in links if link is not None]

    def after_fork(self) -> None:
        """Drop the connections in a child process, as they and their loops belong to the parent."""
        self._link, self._links = None, {}

    def close(self) -> None:
        """Close all connections and fail the calls in flight. Any thread may call this."""
        for link in (*self._give_up(), *self._retired):
            link.hang_up()


class _Link(asyncio.Protocol):
    """
    One connection from its first call to its loss.

    Replies arrive in the order of the calls. A call keeps its place in the queue even if its task is cancelled, so
    that the next call does not get its reply.
    """

    def __init__(
        self, locate: Callable[[], Awaitable[Address]], budget: float, on_lost: Callable[[Address], None]
    ) -> None:
        self.lost = False
        self.answered = 0
        self._address: Address | None = None
        self._on_lost = on_lost
        self._budget = budget
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._greetings = 0
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._late: deque[SharedLateReply] = deque()  # timed-out calls, in the order in which they were sent
        self._unsent: list[bytes] = []
        self._deadline = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = self.loop.create_task(self._connect(locate))

    def call(self, command: bytes) -> asyncio.Future[Any]:
        loop = self.loop
        future = loop.create_future()
        connected = self._transport is not None
        if not self._unsent or not connected:
            self._deadline = loop.time() + self._budget
            if connected:
                loop.call_soon(self._flush)  # calls of the same iteration of the loop join this write
        self._waiting.append((self._deadline, future))
        self._unsent.append(command)
        if self._watch is None:
            self._watch = loop.call_later(self._budget, self._check)
        return future

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast instead of an isinstance check: uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self.lost:
            self._transport.abort()
            return
        self._flush()

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._greetings:
                    self._greeted(reply)
                    continue
                if self.lost:
                    self._store_late(reply)
                    continue
                future = waiting.popleft()[1]
                self.answered += 1
                if not future.done():
                    future.set_result(reply)
        except (hiredis.HiredisError, IndexError) as exc:  # IndexError: unsolicited reply
            self.drop(StoreError("protocol", str(exc)))

    def connection_lost(self, exc: Exception | None) -> None:
        while self._late:
            self._late.popleft().found = LOST
        self.drop(StoreError("connection", str(exc or "closed by the store")))

    def drop(self, reason: StoreError) -> None:
        """Close the connection and fail all calls in flight. Nobody reads what still arrives."""
        self._give_up()
        self._late.clear()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        self._unsent.clear()
        for _, future in waiting:
            if not future.done():
                future.set_exception(reason)

    def _give_up(self) -> None:
        if self._address is not None and not self.lost:
            self._on_lost(self._address)
        self.lost = True
        if self._watch is not None:
            self._watch.cancel()

    def _time_out(self) -> None:
        """Fail the calls in flight, but keep the connection open, as late replies show whether they were executed."""
        self._give_up()
        waiting, self._waiting = self._waiting, deque()
        for _, future in waiting:
            late = SharedLateReply(self._hang_up_if_unawaited)
            self._late.append(late)
            if future.done():
                late.closed = True
            else:
                future.set_exception(StoreError("timeout", late=late))
        self._watch = self.loop.call_later(LATE_SECONDS, self.hang_up)

    def _store_late(self, reply: Any) -> None:
        """Keep a late reply for the oldest call that waits for one."""
        self._late.popleft().found = reply
        if not self._late:
            self.hang_up()

    def _hang_up_if_unawaited(self) -> None:
        if all(late.closed for late in list(self._late)):
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection, in its own loop. Any thread may call this."""
        reason = StoreError("connection", "closed", executed=False)
        if self.loop.is_running() and self.loop is not asyncio._get_running_loop():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
                self.loop.call_soon_threadsafe(self.drop, reason)
        elif not self.loop.is_closed():
            self.drop(reason)

    def retire(self) -> None:
        """Close the connection after the time budget of all calls in flight. Any thread may call this."""
        reason = StoreError("connection", "replaced by a new connection")
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
            self.loop.call_soon_threadsafe(self.loop.call_later, self._budget + 0.01, self.drop, reason)

    async def _connect(self, locate: Callable[[], Awaitable[Address]]) -> None:
        try:
            async with asyncio.timeout(self._budget):
                address = self._address = await locate()
                greeting, self._greetings = address.greeting()
                if greeting:
                    self._unsent.insert(0, greeting)
                await self._open(address)
        except (OSError, UnicodeError, StoreError) as exc:  # TimeoutError is an OSError
            self._connecting = None
            self.drop(unconnected(exc))
        self._connecting = None

    async def _open(self, address: Address) -> None:
        if address.path:
            await self.loop.create_unix_connection(lambda: self, address.path)
            return
        name = address.host if address.tls else None
        await self.loop.create_connection(
            lambda: self, address.host, address.port, ssl=address.tls, server_hostname=name
        )

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def _greeted(self, reply: Any) -> None:
        self._greetings -= 1
        if isinstance(reply, hiredis.ReplyError):
            self.drop(trouble(reply))

    def _check(self) -> None:
        """Set a timer for the end of the oldest call's time, or fail that call and all behind it soon if it is over."""
        self._watch = None
        if not self._waiting:
            return
        late = self.loop.time() - self._waiting[0][0]
        if late < 0:
            self._watch = self.loop.call_later(-late, self._check)
        else:
            # The loop itself may have been busy, and the reply may wait in the socket: let it be read first.
            self._watch = self.loop.call_later(0.001, self._check_again, self.answered)

    def _check_again(self, answered: int) -> None:
        self._watch = None
        if self.answered == answered and self._waiting and self._waiting[0][0] <= self.loop.time():
            if self._transport is None:
                self.drop(StoreError("timeout", executed=False))
            else:
                self._time_out()
        else:
            self._check()


__all__ = ["AsyncPipe"]
