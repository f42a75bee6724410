"""
The hot connection to the store, for threads: encoded commands go out, parsed replies come back in order.

Half of what a decision costs on loopback is the client, so this is ours: hiredis packs and parses, and nothing stands
between it and the socket. Each calling thread is lent a connection of its own; tasks of an event loop share one
(:mod:`enforcement.store.aio_connection`). A call that got no reply in time is never sent again by either: it may have
been executed. Both speak to one server, wherever it is at the moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import sys
import weakref
from collections import deque
from collections.abc import Callable
from time import clock_getres, monotonic
from typing import TYPE_CHECKING, Any, Final

import hiredis

from enforcement.plan.commands import StoreError, trouble
from enforcement.store.address import Address, left_until
from enforcement.store.late_replies import SyncLateReply

if TYPE_CHECKING:
    from enforcement.store.aio_connection import AsyncPipe

_READ_BYTES: Final = 65_536
ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"
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
                raise StoreError("protocol", "a reply that nobody asked for")
            return reply
        pieces = 0
        while True:
            data = self._recv(_READ_BYTES)
            if not data:
                raise StoreError("connection", "closed by the store")
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


def unconnected(exc: Exception) -> StoreError:
    """Return what a connection that was not made means: one that took all the time is not worth another try."""
    late = isinstance(exc, _TIMEOUTS)
    return StoreError("timeout" if late else "connection", str(exc), executed=False)


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
        pipes.add(self)

    def call(self, command: bytes) -> Any:
        """
        Send one encoded command and return its parsed reply.

        Raises:
            StoreError: No usable reply; it says whether the store may have executed the call.
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
        return self._call_on(self._connect(), idle, command)

    def ask(self, command: bytes) -> Any:
        """Send a command to a server that is taking its slot over: it answers only who says that he was sent there."""
        idle = self._idle
        try:
            line = self._there(idle.pop(), idle)
            line.deadline = monotonic() + self._budget
        except IndexError:
            line = self._connect()
        return self._call_on(line, idle, command, asks=True)

    def _call_on(self, line: _Line, idle: deque[_Line], command: bytes, *, asks: bool = False) -> Any:
        """Call on this connection until its deadline, and put it back; calls after this one have the whole budget."""
        try:
            line.send(ASKING + command if asks else command)
            reply = line.read(line.deadline)
            if asks:
                reply = line.read(line.deadline, further=True)
            line.first_done()
        except BaseException as exc:
            # Of two answers, the one that comes late may be the wrong one.
            raise (self._closed(line, exc) if asks else self._broken(line, exc)) from exc
        idle.append(line)
        if idle is not self._idle:
            _hang_up(idle)  # as in call(), which has this within it for its speed
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

    def _broken(self, line: _Line, exc: BaseException) -> BaseException:
        if isinstance(exc, _TIMEOUTS):
            self._lost(line.address)
            return StoreError("timeout", late=SyncLateReply(line.sock, line.reader))
        return self._closed(line, exc)

    def _closed(self, line: _Line, exc: BaseException) -> BaseException:
        line.sock.close()
        self._lost(line.address)
        return _as_trouble(exc)

    def _refused(self, line: _Line, reply: hiredis.ReplyError) -> StoreError:
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
        except (OSError, hiredis.HiredisError, StoreError) as exc:
            self._lost(address)
            if isinstance(exc, StoreError):
                raise
            raise unconnected(exc) from exc

    def after_fork(self) -> None:
        """Begin anew in a child process: the parent's connections are the parent's."""
        self._idle = deque()


def _hang_up(idle: deque[_Line]) -> None:
    with contextlib.suppress(IndexError):  # several threads may do it at once
        while True:
            idle.pop().sock.close()


def ask_once(address: Address, command: bytes, budget: float) -> Any:
    """
    Connect, send one command, return its reply and hang up.

    Raises:
        StoreError: No usable reply within *budget* seconds, or a little more.
    """
    pipe = SyncPipe(lambda: address, budget)
    try:
        return pipe.call(command)
    finally:
        pipe.close()


pipes: Final[weakref.WeakSet[SyncPipe | AsyncPipe]] = weakref.WeakSet()
"""All of this process: each has to begin anew in a forked child."""


def _after_fork() -> None:
    for pipe in list(pipes):
        pipe.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _as_trouble(exc: BaseException) -> BaseException:
    if isinstance(exc, _TIMEOUTS):
        return StoreError("timeout")
    if isinstance(exc, OSError):
        return StoreError("connection", str(exc))
    if isinstance(exc, hiredis.HiredisError):
        return StoreError("protocol", str(exc))
    return exc


__all__ = ["ASKING", "SyncPipe", "ask_once", "pipes", "unconnected"]
