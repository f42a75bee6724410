"""
The hot connection to the store, for asyncio: one a loop, many calls in flight on it, one write a tick of the loop.

See :mod:`enforcement.store.connection`, which is its like for threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import hiredis

from enforcement.plan.commands import StoreError, trouble
from enforcement.store.address import Address
from enforcement.store.connection import ASKING, pipes, unconnected
from enforcement.store.late_replies import LATE_SECONDS, LOST, AioLateReply


class AsyncPipe:
    """
    One connection of each event loop, shared by all its tasks; a new one is made by the first call after a loss.

    Args:
        address: Called for each new connection.
        budget: Seconds a call may take, connecting included.
        lost: As of :class:`~enforcement.store.connection.SyncPipe`.
        known: Says where the store is if that is known; else *address* is called in a thread, for it may have to ask.
            None: *address* always knows.
    """

    def __init__(
        self,
        address: Callable[[], Address],
        budget: float,
        lost: Callable[[Address], None] = lambda address: None,
        known: Callable[[], Address | None] | None = None,
    ) -> None:
        self._address = address
        self._known: Callable[[], Address | None] = known or address
        self._budget = budget
        self._lost = lost
        self._link: _Link | None = None  # the one that was used last: nearly always there is one loop
        self._links: dict[asyncio.AbstractEventLoop, _Link] = {}
        self._retired: weakref.WeakSet[_Link] = weakref.WeakSet()
        pipes.add(self)

    def call(self, command: bytes) -> asyncio.Future[Any]:
        """
        Send one encoded command; await the future for its reply.

        The future raises StoreError as :meth:`~enforcement.store.connection.SyncPipe.call` does, but for error
        replies: they are returned as values of type ``hiredis.ReplyError``.
        """
        link = self._link
        if link is None or link.lost or link.loop is not asyncio.get_running_loop():
            link = self._link_here()
        return link.call(command)

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        """As :meth:`~enforcement.store.connection.SyncPipe.ask`; the two parts leave in one write."""
        link = self._link_here()
        link.call(ASKING).add_done_callback(lambda future: future.cancelled() or future.exception())
        return link.call(command)

    def _link_here(self) -> _Link:
        """Return the connection of the loop that runs here, a new one if there is none."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None or link.lost:
            # Test clients run each request in a loop of its own: a connection of a loop that ended is nobody's.
            for other in list(self._links):
                if other.is_closed():
                    self._links.pop(other, None)
            if link is not None:
                self._retired.add(link)  # it may wait for late answers
            link = self._links[loop] = _Link(self._locate, self._budget, self._lost)
        self._link = link
        return link

    async def _locate(self) -> Address:
        known = self._known()
        return known if known is not None else await asyncio.to_thread(self._address)

    def trouble(self, reply: object) -> StoreError:
        """Return what an error reply means; where it means that the server is a primary no more, leave it."""
        found, link = trouble(reply), self._links.get(asyncio.get_running_loop())
        # One that has not answered yet was made after this reply came: it leads to whoever is the primary now.
        if found.cause == "readonly" and link is not None and link.answered:
            link.drop(StoreError("connection", "the server became a replica", executed=False))
        return found

    def renew(self) -> None:
        """Let calls from now on use a new connection; those under way keep the old one. Any thread may call."""
        for link in self._give_up():
            self._retired.add(link)
            link.retire()

    def _give_up(self) -> list[_Link]:
        self._link = None
        links = [self._links.pop(loop, None) for loop in list(self._links)]
        return [link for link in links if link is not None]

    def after_fork(self) -> None:
        """Begin anew in a child process: connections and loops are the parent's."""
        self._link, self._links = None, {}

    def close(self) -> None:
        """Close the connections, and those that are given up; calls under way fail. Any thread may call."""
        for link in (*self._give_up(), *self._retired):
            link.hang_up()


class _Link(asyncio.Protocol):
    """
    One connection from its first call to its loss.

    Replies come in the order of the calls, so each call keeps its place in a queue whether its task still waits or not:
    a cancelled caller never shifts another's reply.
    """

    def __init__(
        self, locate: Callable[[], Awaitable[Address]], budget: float, lost: Callable[[Address], None]
    ) -> None:
        self.lost = False
        self.answered = 0
        self._address: Address | None = None
        self._tell_lost = lost
        self._budget = budget
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._greetings = 0
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._late: deque[AioLateReply] = deque()  # in the order of their calls, when those were given up
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
                loop.call_soon(self._flush)  # one write a tick: whoever calls until it is over joins it
        self._waiting.append((self._deadline, future))
        self._unsent.append(command)
        if self._watch is None:
            self._watch = loop.call_later(self._budget, self._look)
        return future

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance: uvloop's transports are of no class of asyncio's.
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
                    self._file(reply)
                    continue
                future = waiting.popleft()[1]
                self.answered += 1
                if not future.done():
                    future.set_result(reply)
        except (hiredis.HiredisError, IndexError) as exc:  # IndexError: a reply that nobody asked for
            self.drop(StoreError("protocol", str(exc)))

    def connection_lost(self, exc: Exception | None) -> None:
        while self._late:
            self._late.popleft().found = LOST
        self.drop(StoreError("connection", str(exc or "closed by the store")))

    def drop(self, reason: StoreError) -> None:
        """Give the connection up: nobody may wait for, or read, what still comes over it."""
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
            self._tell_lost(self._address)
        self.lost = True
        if self._watch is not None:
            self._watch.cancel()

    def _wait_no_longer(self) -> None:
        """Fail the calls under way, but leave the connection open: what comes over it tells what became of them."""
        self._give_up()
        waiting, self._waiting = self._waiting, deque()
        for _, future in waiting:
            late = AioLateReply(self._hang_up_unless_awaited)
            self._late.append(late)
            if future.done():
                late.closed = True
            else:
                future.set_exception(StoreError("timeout", late=late))
        self._watch = self.loop.call_later(LATE_SECONDS, self.hang_up)

    def _file(self, reply: Any) -> None:
        """Take a late answer."""
        self._late.popleft().found = reply
        if not self._late:
            self.hang_up()

    def _hang_up_unless_awaited(self) -> None:
        if all(late.closed for late in list(self._late)):
            self.hang_up()

    def hang_up(self) -> None:
        """Give the connection up, in its own loop. Any thread may call."""
        reason = StoreError("connection", "closed", executed=False)
        if self.loop.is_running() and self.loop is not asyncio._get_running_loop():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
                self.loop.call_soon_threadsafe(self.drop, reason)
        elif not self.loop.is_closed():
            self.drop(reason)

    def retire(self) -> None:
        """Hang up when all calls under way have had their time. Any thread may call."""
        reason = StoreError("connection", "given up for another")
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
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

    def _look(self) -> None:
        """Fail calls that got no reply in time, and all behind them: replies come in order, so none comes before."""
        self._watch = None
        if not self._waiting:
            return
        late = self.loop.time() - self._waiting[0][0]
        if late < 0:
            self._watch = self.loop.call_later(-late, self._look)
        else:
            # The loop itself may have been busy, and the reply may lie in the socket: let it read first.
            self._watch = self.loop.call_later(0.001, self._look_again, self.answered)

    def _look_again(self, answered: int) -> None:
        self._watch = None
        if self.answered == answered and self._waiting and self._waiting[0][0] <= self.loop.time():
            if self._transport is None:
                self.drop(StoreError("timeout", executed=False))
            else:
                self._wait_no_longer()
        else:
            self._look()


__all__ = ["AsyncPipe"]
