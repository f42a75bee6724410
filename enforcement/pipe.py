"""
The hot connection to the store, for decisions only: encoded commands go out, parsed replies come back in order.

Half of what a decision costs on loopback is the client, so this is ours: hiredis packs and parses, and nothing stands
between it and the socket. The sync pipe lends each calling thread a connection of its own; the asyncio pipe has one
connection, many calls in flight on it, and one write a tick of the loop. A call that got no reply in time is never sent
again by this module: it may have been executed. Both speak to one server, wherever it is at the moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import struct
import sys
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from time import clock_getres, monotonic
from typing import Any, Final, cast

import hiredis

from enforcement.address import Address, left_until
from enforcement.late import LATE_SECONDS, LOST, LateLine, LateReply
from enforcement.protocol import StoreTrouble, trouble

_READ_BYTES: Final = 65_536
_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"
_TIMEOUTS: Final = (TimeoutError, BlockingIOError)
_QUIET_SECONDS: Final = 1.0
"""Whether a connection is still one is looked at when nothing was said for so long: it costs a system call."""
_HUNG_UP: Final = getattr(
    select, "POLLRDHUP", select.POLLIN
)  # elsewhere than on Linux the end of it is something to read


def _tick_us() -> int:
    """Return the span of the kernel's tick, by which it times what a socket waits for; 1 where it is not told."""
    try:
        return round(clock_getres(_CLOCK_MONOTONIC_COARSE) * 1_000_000) if sys.platform == "linux" else 1
    except OSError:
        return 1


_CLOCK_MONOTONIC_COARSE: Final = 6
_TICK_US: Final = _tick_us()


def _in_ticks(microseconds: int) -> int:
    """
    Return a span in whole ticks, at least one: the kernel takes 0 for no bound at all.

    It rounds a span up to ticks and adds what is left of the present one, so 25 ms may become 32. Rounded down before,
    it is late by less than a tick.
    """
    return max(_TICK_US, microseconds // _TICK_US * _TICK_US)


class _Line:
    """One connection of a sync pipe; used by one thread at a time."""

    __slots__ = ("_budget", "_feed", "_gets", "_recv", "address", "deadline", "reader", "send", "sock")

    def __init__(self, address: Address, budget: float, deadline: float) -> None:
        self._budget, self.deadline = budget, deadline
        self.address = address
        self.sock = address.connect(deadline)
        self.reader = hiredis.Reader()
        self._feed, self._gets = self.reader.feed, self.reader.gets
        self._recv, self.send = self.sock.recv, self.sock.sendall
        try:
            self._wait(left_until(deadline))
            self._greet(*address.greeting())
            self._wait(left_until(deadline))
        except BaseException:
            self.sock.close()
            raise

    def _greet(self, greeting: bytes, replies: int) -> None:
        if greeting:
            self.send(greeting)
        for number in range(replies):
            answer = self.read(self.deadline, further=number > 0)
            if isinstance(answer, hiredis.ReplyError):
                raise trouble(answer)

    def first_done(self) -> None:
        """The call that had to connect is over: from now on each has the whole budget."""
        self._wait(self._budget)

    def read(self, deadline: float, *, further: bool = False) -> Any:
        """
        Return the next reply; all of it must arrive in time, however it is cut.

        Args:
            deadline: Monotonic seconds. The kernel bounds a reply in one piece; this bounds one in several.
            further: Whether it may have come with the one before, for both were asked for together.
        """
        reply = self._gets()
        if reply is not False:
            if not further:
                raise StoreTrouble("protocol", "a reply that nobody asked for")
            return reply
        pieces = 0
        while True:
            data = self._recv(_READ_BYTES)
            if not data:
                raise StoreTrouble("connection", "closed by the store")
            self._feed(data)
            reply = self._gets()
            if reply is not False:
                if pieces:
                    self._wait(self._budget)
                return reply
            pieces += 1
            self._wait(left_until(deadline))

    def hung_up(self) -> bool:
        """Tell whether the store has closed its end: servers and what stands before them do when nothing is said."""
        watch = select.poll()
        watch.register(self.sock, _HUNG_UP)
        return bool(watch.poll(0))

    def _wait(self, seconds: float) -> None:
        """
        Let the kernel bound each system call.

        Python's own timeout asks ``poll`` before each of them, which a decision would feel; TLS needs it, though.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(seconds)
            return
        self.sock.setblocking(True)
        span = struct.pack("@ll", *divmod(_in_ticks(int(seconds * 1_000_000)), 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


def _unconnected(exc: Exception) -> StoreTrouble:
    """Return what a connection that was not made means: one that took all the time is not worth another try."""
    late = isinstance(exc, _TIMEOUTS)
    return StoreTrouble("timeout" if late else "connection", str(exc), executed=False)


class SyncPipe:
    """
    Connections for threads.

    Args:
        address: Called for each new connection; says where the store is now.
        budget: Seconds a call may take, connecting included.
        lost: Told the address of each connection that failed, or whose server takes no writes any longer.
    """

    def __init__(
        self, address: Callable[[], Address], budget: float, lost: Callable[[Address], None] = lambda address: None
    ) -> None:
        self._address = address
        self._budget = budget
        self._lost = lost
        self._idle: deque[_Line] = deque()
        _forked.add(self)

    def call(self, command: bytes) -> Any:
        """
        Send one encoded command and return its parsed reply.

        Raises:
            StoreTrouble: No usable reply; it says whether the store may have executed the call.
        """
        deadline = monotonic() + self._budget
        idle = self._idle
        try:
            line = idle.pop()
            if deadline - line.deadline > _QUIET_SECONDS:
                line = self._there(line, idle)
        except IndexError:
            return self._call_anew(command)
        line.deadline = deadline
        try:
            line.send(command)
            reply = line.read(deadline)
        except BaseException as exc:
            # Whatever happened, a reply may still be under way: nobody may read this connection again.
            raise self._broken(line, exc) from exc
        idle.append(line)
        if idle is not self._idle:
            _hang_up(idle)  # all were given up while this one was in use
        if type(reply) is hiredis.ReplyError:
            raise self._refused(line, reply)
        return reply

    def _call_anew(self, command: bytes) -> Any:
        """Call on a new connection, which leaves the call what is left of the budget."""
        idle = self._idle
        line = self._connect()
        try:
            line.send(command)
            reply = line.read(line.deadline)
            line.first_done()
        except BaseException as exc:
            raise self._broken(line, exc) from exc
        self._put_back(line, idle)
        if type(reply) is hiredis.ReplyError:
            raise self._refused(line, reply)
        return reply

    def ask(self, command: bytes) -> Any:
        """Send a command to a server that is taking its slot over: it answers only who says that he was sent there."""
        idle = self._idle
        try:
            line = self._there(idle.pop(), idle)
            line.deadline = monotonic() + self._budget
        except IndexError:
            line = self._connect()
        try:
            line.send(_ASKING + command)
            line.read(line.deadline)
            reply = line.read(line.deadline, further=True)
            line.first_done()
        except BaseException as exc:
            line.sock.close()
            self._lost(line.address)
            raise _as_trouble(exc) from exc
        self._put_back(line, idle)
        if type(reply) is hiredis.ReplyError:
            raise self._refused(line, reply)
        return reply

    def _there(self, line: _Line, idle: deque[_Line]) -> _Line:
        """Return this connection or another idle one whose server has not hung up. Raises IndexError: none is left."""
        while line.hung_up():
            line.sock.close()
            self._lost(line.address)
            line = idle.pop()
        return line

    def _put_back(self, line: _Line, idle: deque[_Line]) -> None:
        """Lend a connection to the next call, unless all of its time were given up while it was in use."""
        idle.append(line)
        if idle is not self._idle:
            _hang_up(idle)

    def _broken(self, line: _Line, exc: BaseException) -> BaseException:
        self._lost(line.address)
        if isinstance(exc, _TIMEOUTS):
            return StoreTrouble("timeout", late=LateLine(line.sock, line.reader))
        line.sock.close()
        return _as_trouble(exc)

    def _refused(self, line: _Line, reply: hiredis.ReplyError) -> StoreTrouble:
        found = trouble(reply)
        if found.cause == "readonly":  # a primary no more: the next call connects to whoever is one now
            self._lost(line.address)
            self.close()
        return found

    def close(self) -> None:
        """Give all connections up: those that nobody uses now, and the others when their calls are over."""
        idle, self._idle = self._idle, deque()
        _hang_up(idle)

    def _connect(self) -> _Line:
        deadline = monotonic() + self._budget
        address = self._address()
        try:
            return _Line(address, self._budget, deadline)
        except (OSError, hiredis.HiredisError, StoreTrouble) as exc:
            self._lost(address)
            if isinstance(exc, StoreTrouble):
                raise
            raise _unconnected(exc) from exc

    def _after_fork(self) -> None:
        self._idle = deque()  # the parent's connections are the parent's


def _hang_up(idle: deque[_Line]) -> None:
    with contextlib.suppress(IndexError):  # several threads may do it at once
        while True:
            idle.pop().sock.close()


def ask_once(address: Address, command: bytes, budget: float) -> Any:
    """
    Connect, send one command, return its reply and hang up.

    Raises:
        StoreTrouble: No usable reply within *budget* seconds, or a little more.
    """
    pipe = SyncPipe(lambda: address, budget)
    try:
        return pipe.call(command)
    finally:
        pipe.close()


_forked: weakref.WeakSet[SyncPipe | AsyncPipe] = weakref.WeakSet()


def _forget_lines() -> None:
    for pipe in list(_forked):
        pipe._after_fork()


os.register_at_fork(after_in_child=_forget_lines)


def _as_trouble(exc: BaseException) -> BaseException:
    if isinstance(exc, _TIMEOUTS):
        return StoreTrouble("timeout")
    if isinstance(exc, OSError):
        return StoreTrouble("connection", str(exc))
    if isinstance(exc, hiredis.HiredisError):
        return StoreTrouble("protocol", str(exc))
    return exc


class AsyncPipe:
    """
    One connection of each event loop, shared by all its tasks; a new one is made by the first call after a loss.

    Args:
        address: Called for each new connection.
        budget: Seconds a call may take, connecting included.
        lost: As of :class:`SyncPipe`.
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
        _forked.add(self)

    def call(self, command: bytes) -> asyncio.Future[Any]:
        """
        Send one encoded command; await the future for its reply.

        The future raises StoreTrouble as :meth:`SyncPipe.call` does, but for error replies: they are returned as values
        of type ``hiredis.ReplyError``.
        """
        link = self._link
        if link is None or link.lost or link.loop is not asyncio.get_running_loop():
            link = self._link_here()
        return link.call(command)

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        """As :meth:`SyncPipe.ask`; the two parts leave in one write."""
        link = self._link_here()
        link.call(_ASKING).add_done_callback(lambda future: future.cancelled() or future.exception())
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

    def trouble(self, reply: object) -> StoreTrouble:
        """Return what an error reply means; where it means that the server is a primary no more, leave it."""
        found, link = trouble(reply), self._links.get(asyncio.get_running_loop())
        # One that has not answered yet was made after this reply came: it leads to whoever is the primary now.
        if found.cause == "readonly" and link is not None and link.answered:
            link.drop(StoreTrouble("connection", "the server became a replica", executed=False))
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

    def _after_fork(self) -> None:
        self._link, self._links = None, {}  # the parent's, and of the parent's loops

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
        self._late: deque[LateReply] = deque()  # in the order of their calls, when those were given up
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
            self.drop(StoreTrouble("protocol", str(exc)))

    def connection_lost(self, exc: Exception | None) -> None:
        while self._late:
            self._late.popleft().found = LOST
        self.drop(StoreTrouble("connection", str(exc or "closed by the store")))

    def drop(self, reason: StoreTrouble) -> None:
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
            late = LateReply(self.hang_up)
            self._late.append(late)
            if not future.done():
                future.set_exception(StoreTrouble("timeout", late=late))
        self._watch = self.loop.call_later(LATE_SECONDS, self.hang_up)

    def _file(self, reply: Any) -> None:
        """Take a late answer."""
        self._late.popleft().found = reply
        if not self._late:
            self.hang_up()

    def hang_up(self) -> None:
        """Give the connection up, in its own loop. Any thread may call."""
        reason = StoreTrouble("connection", "closed", executed=False)
        if self.loop.is_running() and self.loop is not asyncio._get_running_loop():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
                self.loop.call_soon_threadsafe(self.drop, reason)
        elif not self.loop.is_closed():
            self.drop(reason)

    def retire(self) -> None:
        """Hang up when all calls under way have had their time. Any thread may call."""
        reason = StoreTrouble("connection", "given up for another")
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
        except (OSError, UnicodeError, StoreTrouble) as exc:  # TimeoutError is an OSError
            self._connecting = None
            self.drop(_unconnected(exc))
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
                self.drop(StoreTrouble("timeout", executed=False))
            else:
                self._wait_no_longer()
        else:
            self._look()


__all__ = ["Address", "AsyncPipe", "SyncPipe", "ask_once"]
