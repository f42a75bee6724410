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
from math import inf
from time import monotonic
from typing import Final, cast

import hiredis

from enforcement import fork
from enforcement.store.address import Address
from enforcement.store.connection import ASKING, unconnected
from enforcement.store.errors import StoreError, trouble
from enforcement.store.late_replies import LATE_SECONDS, LOST, SharedLateReply

_LOOKS_IN_A_BUDGET: Final = 4
"""How often a connection with calls in flight looks at the clock. A late look shows that the loop was busy."""
_NEARLY: Final = 0.9
"""A decision that has so much of its budget left needs no timer of its own."""
_LAG_SECONDS: Final = 0.002
"""A loop that is late by less is not busy."""
_LAST_LOOK_SECONDS: Final = 0.001
"""How long a reply that is due may still be read, as it may wait in the socket while the loop is busy."""
_UNPROVEN: Final = 1.5
"""A store that has not answered so many times the calls that it fails at once is not known to: each of them counts."""
_CALLS_IN_A_WRITE: Final = 64
"""The number of calls that are sent at once while the loop is still making more, so that the store can begin."""


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
        self._answered = 0  # calls, on connections that are used for no new ones
        self._link: _Link | None = None  # the one used last; nearly always there is a single loop
        self._links: dict[asyncio.AbstractEventLoop, _Link] = {}
        self._retired: weakref.WeakSet[_Link] = weakref.WeakSet()
        fork.register(self)

    def call(self, command: bytes) -> asyncio.Future[object]:
        """
        Send one encoded command and return a future for its reply.

        The future raises StoreError like :meth:`~enforcement.store.connection.SyncPipe.call`, with one difference: an
        error reply is not raised but returned, as a value of type ``hiredis.ReplyError``.
        """
        link = self._link
        if link is None or link.lost or link.loop is not asyncio.get_running_loop():
            link = self._link_here()
        return link.call(command)

    def call_again(self, command: bytes, deadline: float, *, asking: bool = False) -> asyncio.Future[object]:
        """
        Send a further command of a decision, within what is left of its budget, and return a future of the reply.

        Args:
            deadline: When the budget of the decision ends, in monotonic seconds.
            asking: Whether to send ``ASKING`` first, in the same write, to a node that takes over the command's slot.
        Returns:
            A future of the reply. See :meth:`call`.
        """
        left = deadline - monotonic()
        if left <= 0:
            future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            future.set_exception(unconnected(TimeoutError("the time budget is used up")))
            return future
        link = self._link_here()
        if asking:
            link.call(ASKING).add_done_callback(lambda future: future.cancelled() or future.exception())
        future = link.call(command)
        if left > _NEARLY * self._budget:
            return future
        timer = link.loop.call_later(left, link.end, future)
        future.add_done_callback(lambda future: timer.cancel())
        return future

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
                self._forget(link)
            link = self._links[loop] = _Link(self._locate, self._budget, self._on_lost, self._answered)
        self._link = link
        return link

    async def _locate(self) -> Address:
        known = self._known()
        return known if known is not None else await asyncio.to_thread(self._address)

    def trouble(self, reply: object) -> StoreError:
        """Return the exception for an error reply, and drop the connection if the server has become a replica."""
        store_error, link = trouble(reply), self._links.get(asyncio.get_running_loop())
        # A connection that has no reply yet was made after this reply arrived, so it leads to the new primary.
        if store_error.cause == "readonly" and link is not None and link.answered > link.answered_earlier:
            link.drop(StoreError("connection", "the server became a replica", executed=False))
        return store_error

    def renew(self) -> None:
        """
        Open a new connection for the next calls, while calls in flight keep the old one. Any thread may call this.
        """
        for link in self._give_up():
            self._forget(link)
            link.retire()

    def _forget(self, link: _Link) -> None:
        """Use a connection for no new calls. It may still wait for late replies."""
        self._retired.add(link)
        self._answered = max(self._answered, link.answered)

    def _give_up(self) -> list[_Link]:
        self._link = None
        links = [self._links.pop(loop, None) for loop in list(self._links)]
        return [link for link in links if link is not None]

    def after_fork(self) -> None:
        """Drop the connections in a child process, as they and their loops belong to the parent."""
        self._link, self._links = None, {}

    async def finish(self) -> None:
        """
        Close all connections. Calls in flight of this loop are waited for, as they end within their budget. Calls that
        begin meanwhile have a connection of their own until they are over.
        """
        links, loop = [*self._give_up(), *self._retired], asyncio.get_running_loop()
        try:
            if calls := [call for link in links if link.loop is loop for call in link.in_flight()]:
                await asyncio.wait(calls)
        finally:
            for link in links:
                link.hang_up()
            self.renew()

    def close(self) -> None:
        """Close all connections and fail the calls in flight. Any thread may call this."""
        for link in (*self._give_up(), *self._retired):
            link.hang_up()


class _Link(asyncio.Protocol):
    """
    One connection from its first call to its loss.

    Replies arrive in the order of the calls. A call keeps its place in the queue even if its task is cancelled or its
    time is over, so that the next call does not get its reply.

    The time budget of a call begins when the call is written, and does not run while the loop is busy.

    Attributes:
        lost: Whether new calls must use another connection, because a reply is late or the connection has ended.
        answered: How many replies have arrived, on earlier connections as well.
        answered_earlier: How many of these have arrived on earlier ones.
        pieces: In how many pieces they have arrived on this one.
    """

    def __init__(
        self,
        locate: Callable[[], Awaitable[Address]],
        budget: float,
        on_lost: Callable[[Address], None],
        answered: int = 0,
    ) -> None:
        self.lost = False
        self.answered = self.answered_earlier = answered
        self.pieces = 0
        self._address: Address | None = None
        self._on_lost = on_lost
        self._budget = budget
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._greeting, self._greetings = b"", 0
        self._waiting: deque[tuple[list[float], asyncio.Future[object]]] = deque()
        self._late: dict[asyncio.Future[object], SharedLateReply] = {}  # of the waiting calls whose time is over
        self._unsent: list[bytes] = []
        self._ends: list[float] = []  # when the budget of the unsent calls ends, by _now(), in one cell for all
        self._busy = 0.0  # for how many seconds the loop was busy while it should have looked at the clock
        self._look_at = 0.0
        self._answered_before = -1
        self._look: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._limit: asyncio.Timeout | None = None
        self._connecting: asyncio.Task[None] | None = self.loop.create_task(self._connect(locate))

    def call(self, command: bytes) -> asyncio.Future[object]:
        future, unsent = self.loop.create_future(), self._unsent
        if not unsent:
            if self._transport is None:
                self._ends = [self._now() + self._budget]
                self._watch()
            else:
                self._ends = [inf]
                self.loop.call_soon(self._flush)  # calls of the same iteration of the loop join this write
        self._waiting.append((self._ends, future))
        unsent.append(command)
        if len(unsent) >= _CALLS_IN_A_WRITE:
            self._flush()
        return future

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast instead of an isinstance check: uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self.lost:
            self._transport.abort()
            return
        if self._greeting:
            self._transport.write(self._greeting)
        self._flush()

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        self.pieces += 1
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._greetings:
                    self._greeted(reply)
                    continue
                future = waiting.popleft()[1]
                self.answered += 1
                if not future.done():
                    future.set_result(reply)
                elif (late := self._late.pop(future, None)) is not None:
                    late.found = reply
        except (hiredis.HiredisError, IndexError) as exc:  # IndexError: unsolicited reply
            self.drop(StoreError("protocol", str(exc)))
        if self.lost and not waiting:
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        for late in self._late.values():
            late.found = LOST
        self.drop(StoreError("connection", str(exc or "closed by the store")))

    def drop(self, reason: StoreError) -> None:
        """Close the connection and fail all calls in flight. Nobody reads what still arrives."""
        self._give_up()
        self._late.clear()
        for timer in (self._look, self._closing):
            if timer is not None:
                timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        self._unsent.clear()
        for _, future in waiting:
            if not future.done():
                future.set_exception(reason)
                reason = reason.beside()

    def _give_up(self) -> None:
        if self._address is not None and not self.lost:
            self._on_lost(self._address)
        self.lost = True

    def end(self, future: asyncio.Future[object]) -> None:
        """Fail a call whose time is over, if it has no reply yet."""
        if not future.done():
            self._time_out([future])

    def _time_out(self, futures: list[asyncio.Future[object]]) -> None:
        """
        Fail calls whose time is over.

        The connection stays open, as late replies show whether the calls were executed. Calls behind these still have
        their time. Nothing can overtake a late reply, so whatever else is late here counts with it as one failure, if
        the store is known to answer.
        """
        if self._transport is None:
            self.drop(StoreError("timeout", executed=False))
            return
        counts, proven = not self.lost, self.answered >= _UNPROVEN * len(futures)
        crowd = max(1, (self.answered - self.answered_earlier) // max(1, self.pieces))
        self._give_up()
        if self._closing is None:
            self._closing = self.loop.call_later(LATE_SECONDS, self.hang_up)
        for future in futures:
            late = self._late[future] = SharedLateReply(self._hang_up_if_unawaited)
            future.set_exception(StoreError("timeout", away=counts, late=late, crowd=crowd))
            counts = counts and not proven

    def _hang_up_if_unawaited(self) -> None:
        waits = any(not future.done() for _, future in list(self._waiting))
        if not waits and all(late.closed for late in list(self._late.values())):
            self.hang_up()

    def hang_up(self) -> None:
        """
        Close the connection, in its own loop. Any thread may call this.

        The store may have executed the calls in flight, so they are not sent again. Nor is a connection opened for the
        others, because nobody would close it.
        """
        reason = StoreError("connection", "closed")
        if self.loop.is_running() and self.loop is not asyncio._get_running_loop():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
                self.loop.call_soon_threadsafe(self.drop, reason)
        elif not self.loop.is_closed():
            self.drop(reason)

    def in_flight(self) -> list[asyncio.Future[object]]:
        """Return the calls that wait for their replies."""
        return [future for _, future in self._waiting if not future.done()]

    def retire(self) -> None:
        """Close the connection after the time budget of all calls in flight. Any thread may call this."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
            self.loop.call_soon_threadsafe(self._retire)

    def _retire(self) -> None:
        pause = self._budget + 0.01 if self._waiting else 0.0
        self.loop.call_later(pause, self.drop, StoreError("connection", "replaced by a new connection"))

    async def _connect(self, locate: Callable[[], Awaitable[Address]]) -> None:
        try:
            async with asyncio.timeout(self._budget) as self._limit:
                address = self._address = await locate()
                self._greeting, self._greetings = address.greeting()
                await self._open(address)
        except (OSError, UnicodeError, StoreError) as exc:  # TimeoutError is an OSError
            self._connecting = None
            self.drop(unconnected(exc))
        self._connecting = self._limit = None

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
            if self._ends[0] == inf:
                self._ends[0] = self._now() + self._budget
            self._watch()

    def _greeted(self, reply: object) -> None:
        self._greetings -= 1
        if isinstance(reply, hiredis.ReplyError):
            self.drop(trouble(reply))

    def _now(self) -> float:
        """Return the seconds by a clock that stands still while the loop is busy, as far as that is known."""
        return self.loop.time() - self._busy

    def _watch(self) -> None:
        """Look at the clock from now on, unless that is going on."""
        if self._look is None:
            self._look_in(self._budget / _LOOKS_IN_A_BUDGET)

    def _look_in(self, seconds: float) -> None:
        self._look_at = self.loop.time() + seconds
        self._look = self.loop.call_later(seconds, self._look_at_clock)

    def _look_at_clock(self) -> None:
        """Fail the calls whose time is over, if the loop had the time to read their replies."""
        lag = self.loop.time() - self._look_at
        if lag > _LAG_SECONDS:
            self._busy += lag
            limit = self._limit  # a pause may have ended it just before
            if limit is not None and not limit.expired() and (when := limit.when()) is not None:
                limit.reschedule(when + lag)
        now = self._now()
        ends = next((ends[0] for ends, future in self._waiting if not future.done()), None)
        if ends is None:
            self._look = None
        elif ends > now:
            self._answered_before = -1
            self._look_in(min(self._budget / _LOOKS_IN_A_BUDGET, ends - now))
        elif self._may_answer(now - ends):
            self._answered_before = self.answered
            self._look_in(_LAST_LOOK_SECONDS)
        else:
            self._answered_before = -1
            self._look_in(self._budget / _LOOKS_IN_A_BUDGET)
            self._time_out([future for ends, future in self._waiting if ends[0] <= now and not future.done()])

    def _may_answer(self, late: float) -> bool:
        """
        Return whether calls that are late by these seconds may still be answered.

        The first look may have come before the reply was read. Later looks still wait for up to one budget while
        replies keep coming, as the store then works through what this process has sent at once.
        """
        if self._answered_before < 0:
            return True
        return self.answered != self._answered_before and not self.lost and late < self._budget
