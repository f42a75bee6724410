"""
The connections that threads use to send encoded commands to the store and receive parsed replies.

On loopback, half of the cost of a decision is the client, so this library has its own: hiredis encodes and parses, and
nothing else lies between it and the socket. Each calling thread borrows a connection of its own. The tasks of an event
loop share one (:mod:`enforcement.store.aio_connection`). A call that got no reply in time is never sent again,
because it may have been executed.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from time import clock_getres, monotonic
from typing import Any, Final

import hiredis

from enforcement import fork
from enforcement.store.address import Address, TimeToWait, is_native
from enforcement.store.errors import StoreError, trouble
from enforcement.store.late_replies import AioLateReply

_READ_BYTES: Final = 65_536
ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"
_TIMEOUTS: Final = (TimeoutError, BlockingIOError, ssl.SSLWantReadError)
_QUIET_SECONDS: Final = 1.0
"""A connection that was idle for longer is checked before it is used; the check costs a system call."""
_TOGETHER_SECONDS: Final = 0.05
"""Connections that end within this span, as a server or a balancer closes many at once, are one failure."""
# Elsewhere than on Linux, the end of a connection shows as data to read.
_HUNG_UP: Final = getattr(select, "POLLRDHUP", select.POLLIN)


def _tick_us() -> int:
    """Return the microseconds of the kernel's tick, the unit of socket timeouts, or 1 if they are unknown."""
    try:
        return round(clock_getres(_CLOCK_MONOTONIC_COARSE) * 1_000_000) if sys.platform == "linux" else 1
    except OSError:
        return 1


_CLOCK_MONOTONIC_COARSE: Final = 6
_TICK_US: Final = _tick_us()


MOST_LAG_SECONDS = 2.0
"""How long calls may last beyond their budgets on a host with too few processors, before a store counts as away."""
_LOOKS: Final = 3
"""How many looks at the host in a row must find nobody waiting before a late reply is the store's fault."""
_LOOK_SECONDS: Final = 0.001
_PROCESSORS: Final = os.cpu_count() or 1
_RUNNABLE: Final = re.compile(rb" (\d+)/")


def _in_ticks(microseconds: int) -> int:
    """
    Return the part of a timeout in microseconds that the kernel is to wait for, or 0 if it must not wait for any.

    The kernel waits for up to a tick longer than the whole ticks that it is given. So it gets one less, and whoever is
    woken by it waits for the rest by a clock that is exact.
    """
    return max(0, (microseconds // _TICK_US - 1) * _TICK_US)


def is_starved() -> bool:
    """Return whether somebody besides this thread waits for a processor of this host just now, as far as is known."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            matched = _RUNNABLE.search(file.read(64))
    except OSError:  # not Linux
        return False
    return matched is not None and int(matched[1]) - 1 > _PROCESSORS


class Patience:
    """
    When calls to a server may last beyond their budgets on a busy host: once, until it answers again.

    Attributes:
        answered: The deadline of the last call with a reply, or when the reply came if that was later.
        since: The deadline of the first call without a reply after that, which all wait from.
    """

    __slots__ = ("answered", "since")

    def __init__(self) -> None:
        self.answered = self.since = 0.0

    def until(self, deadline: float) -> float:
        """Return until when a call may last that got no reply before its deadline, in monotonic seconds."""
        if self.since <= self.answered:
            self.since = deadline
        return min(self.since, deadline) + MOST_LAG_SECONDS


class _Line:
    """One connection of a SyncPipe, used by one thread at a time."""

    __slots__ = (
        "_budget",
        "_by_kernel",
        "_feed",
        "_gets",
        "_native",
        "_patience",
        "_recv",
        "address",
        "deadline",
        "made_at",
        "reader",
        "send",
        "sock",
    )

    def __init__(self, address: Address, budget: float, time: TimeToWait, patience: Patience) -> None:
        self._budget, self._patience = budget, patience
        self.address = address
        self.sock = address.connect(time)
        self.deadline = self.made_at = monotonic()
        # The sockets of gevent wait in its hub, where the kernel's timeouts have no effect.
        self._native = is_native(type(self.sock))
        self._by_kernel = self._native and not isinstance(self.sock, ssl.SSLSocket)
        self.reader = hiredis.Reader()
        self._feed, self._gets = self.reader.feed, self.reader.gets
        self._recv, self.send = self.sock.recv, self.sock.sendall
        try:
            greeting, replies = address.greeting()
            for number in range(replies):
                time.during(lambda seconds: self._greet(seconds, b"" if number else greeting))  # noqa: B023
            self.limit_to(time.left)
        except BaseException:
            self.sock.close()
            raise

    def _greet(self, seconds: float, greeting: bytes) -> None:
        """Send the greeting unless it is empty, and read one of the replies to it."""
        self._set_timeout(seconds)
        if greeting:
            self.send(greeting)
        reply = self.read(monotonic() + seconds, further=not greeting)
        if isinstance(reply, hiredis.ReplyError):
            raise trouble(reply)

    def limit_to(self, seconds: float) -> None:
        """Set the timeout of the next call. Raises TimeoutError if no time is left."""
        if seconds <= 0:
            raise TimeoutError("the time budget is used up")
        self._set_timeout(seconds)
        self.deadline = monotonic() + seconds

    def first_done(self) -> None:
        """Set the timeout to the whole budget after a call that had only a part of it."""
        self._set_timeout(self._budget)

    def read(self, deadline: float, *, further: bool = False) -> object:
        """
        Return the next reply on this connection. All of it must arrive in time, no matter in how many pieces.

        Args:
            deadline: Monotonic seconds. The kernel limits the wait for one piece, this limits the wait for all. A
                reply that has arrived when this thread looks is never too late.
            further: Whether the reply may have arrived together with the previous one, as both were requested at once.
        """
        reply = self._gets()
        if reply is not False:
            if not further:
                raise StoreError("protocol", "unsolicited reply")
            return reply
        pieces = 0
        while True:
            try:
                data = self._recv(_READ_BYTES)
            except _TIMEOUTS:
                data = self._arrived_meanwhile(deadline)
            if not data:
                raise StoreError("connection", "closed by the store")
            self._feed(data)
            reply = self._gets()
            if reply is not False:
                if pieces:
                    self._set_timeout(self._budget)
                return reply
            pieces += 1
            self._set_timeout(max(0.0, deadline - monotonic()))

    def _arrived_meanwhile(self, deadline: float) -> bytes:
        """
        Return what arrives until the deadline, or has arrived although it is over. Raises TimeoutError if nothing has.
        """
        looking = (_LOOKS - 1) * _LOOK_SECONDS if self._native else 0.0
        data = self._received_within(max(0.0, deadline - looking - monotonic()))
        if data is None and self._native:
            data = self._arrived_late(deadline)
        if data is None:
            raise TimeoutError("no reply in time")
        self._patience.answered = monotonic()
        self._set_timeout(self._budget)
        return data

    def _arrived_late(self, deadline: float) -> bytes | None:
        """
        Return what arrives until the deadline, or later while others wait for a processor, perhaps those who send it.
        None: nothing has arrived.
        """
        until, quiet = self._patience.until(deadline), 0
        while (now := monotonic()) < until:
            quiet = 0 if is_starved() else quiet + 1
            if quiet >= _LOOKS and now >= deadline:
                return None
            # The later it is, the fewer looks: each takes a processor from those who wait for one.
            pause = _LOOK_SECONDS if quiet else max(_LOOK_SECONDS, (now - deadline) / 2)
            data = self._received_within(min(pause, until - now))
            if data is not None:
                return data
        return self._received_within(max(0.0, deadline - now))

    def _received_within(self, seconds: float) -> bytes | None:
        """Return what arrives within so many seconds, exactly, or None."""
        self.sock.settimeout(seconds)
        try:
            return self._recv(_READ_BYTES)
        except _TIMEOUTS:
            return None

    def hung_up(self) -> bool:
        """Return whether the store has closed its end of the connection, as servers do with idle ones."""
        watch = select.poll()
        watch.register(self.sock, _HUNG_UP)
        return bool(watch.poll(0))

    def _set_timeout(self, seconds: float) -> None:
        """
        Set the timeout of each system call on this connection.

        The kernel does it, as Python's own timeout adds a ``poll`` to every call, which a decision would feel. TLS
        and gevent work with Python's timeout only.
        """
        ticks = _in_ticks(int(seconds * 1_000_000)) if self._by_kernel else 0
        if not ticks:
            self.sock.settimeout(seconds)
            return
        self.sock.setblocking(True)
        span = struct.pack("@ll", *divmod(ticks, 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


def unconnected(exc: Exception) -> StoreError:
    """Return the exception for a connection that was not made. After a timeout, no time is left for a retry."""
    late = isinstance(exc, _TIMEOUTS)
    return StoreError("timeout" if late else "connection", str(exc), executed=False)


class SyncPipe:
    """
    A pool of connections to one server, for threads.

    Args:
        address: Called for each new connection; returns where the server is now.
        budget: Seconds that a call may take, including the time to connect.
        on_lost: Called with the address of each connection that failed, or whose server has become a replica.
    """

    def __init__(
        self, address: Callable[[], Address], budget: float, on_lost: Callable[[Address], None] = lambda address: None
    ) -> None:
        self._address = address
        self._budget = budget
        self._on_lost = on_lost
        self._patience = Patience()
        self._idle: list[_Line] = []
        self._lost_at = 0.0  # when a connection ended that counts as a failure, in monotonic seconds
        fork.register(self)

    def call(self, command: bytes, deadline: float = 0.0) -> object:
        """
        Send one encoded command and return its parsed reply.

        Args:
            deadline: Now plus the budget, in monotonic seconds, from a caller that has read the clock already.
        Raises:
            StoreError: There is no usable reply. The exception says whether the call may have been executed.
        """
        deadline = deadline or monotonic() + self._budget
        idle = self._idle
        try:
            line = idle.pop()
            if deadline - line.deadline > _QUIET_SECONDS:
                line = self._connected(line, idle)
        except IndexError:
            return self._call_anew(command, self._budget)  # nobody was waited for yet
        line.deadline = deadline
        try:
            line.send(command)
            reply = line.read(deadline)
        except BaseException as exc:
            # A reply may still arrive on this connection, so nobody may use it again, whatever was raised.
            raise self._broken(line, exc) from exc
        self._patience.answered = deadline
        idle.append(line)
        if idle is not self._idle:
            _hang_up(idle)  # close() was called while this connection was in use
        if type(reply) is hiredis.ReplyError:
            raise self._refused(line, reply)
        return reply

    def call_again(self, command: bytes, seconds: float, *, asking: bool = False) -> object:
        """
        Send a further command of a decision, within what is left of its budget, and return its parsed reply.

        Args:
            seconds: What is left. It counts from when this thread has a connection and waits.
            asking: Whether to send ``ASKING`` first, to a node that is taking over the command's slot.
        Raises:
            StoreError: See :meth:`call`.
        """
        if not asking and seconds > self._budget - _TICK_US / 1_000_000:
            # The kernel would round what is left to the same timeout.
            return SyncPipe.call(self, command, monotonic() + seconds)
        idle = self._idle
        try:
            line = self._connected(idle.pop(), idle)
        except IndexError:
            return self._call_anew(command, seconds, asking=asking)
        try:
            line.limit_to(seconds)
        except TimeoutError as exc:
            idle.append(line)
            raise unconnected(exc) from exc
        return self._call_on(line, idle, command, asking=asking)

    def _call_anew(self, command: bytes, seconds: float, *, asking: bool = False) -> object:
        """Send a command on a new connection, with what connecting leaves of these seconds, and return the reply."""
        idle = self._idle
        return self._call_on(self._connect(TimeToWait(seconds)), idle, command, asking=asking)

    def _call_on(self, line: _Line, idle: list[_Line], command: bytes, *, asking: bool = False) -> object:
        """Send a command on this connection, keep the connection for later calls, and return the reply."""
        try:
            line.send(ASKING + command if asking else command)
            reply = line.read(line.deadline)
            if asking:
                reply = line.read(line.deadline, further=True)
            line.first_done()
        except BaseException as exc:
            # The late reply of an ASKING call is not kept: two replies are due, and the first one means nothing.
            raise (self._closed(line, exc) if asking else self._broken(line, exc)) from exc
        self._patience.answered = line.deadline
        idle.append(line)
        if idle is not self._idle:
            _hang_up(idle)  # repeated in call(), which avoids this function call for speed
        if type(reply) is hiredis.ReplyError:
            raise self._refused(line, reply)
        return reply

    def _connected(self, line: _Line, idle: list[_Line]) -> _Line:
        """Return this or another idle connection that the server has not closed. Raises IndexError if none is left."""
        while line.hung_up():
            line.sock.close()
            self._on_lost(line.address)
            line = idle.pop()
        return line

    def _broken(self, line: _Line, exc: BaseException) -> BaseException:
        if isinstance(exc, _TIMEOUTS):
            self._on_lost(line.address)
            return StoreError("timeout", late=AioLateReply(line.sock, line.reader))
        return self._closed(line, exc)

    def _closed(self, line: _Line, exc: BaseException) -> BaseException:
        line.sock.close()
        self._on_lost(line.address)
        error = _as_trouble(exc)
        if not isinstance(error, StoreError) or error.cause != "connection":
            return error
        self._drop_hung_up()
        now, lost_at = monotonic(), self._lost_at
        if line.made_at < lost_at and now - lost_at < _TOGETHER_SECONDS:
            return error.beside()
        self._lost_at = now
        return error

    def _refused(self, line: _Line, reply: hiredis.ReplyError) -> StoreError:
        store_error = trouble(reply)
        if store_error.cause == "readonly":  # the server is a replica now: the next call has to find the new primary
            self._on_lost(line.address)
            self.close()
        return store_error

    def _drop_hung_up(self) -> None:
        """Close the idle connections that ended together with another one, so that none of them costs a decision."""
        idle = self._idle
        with contextlib.suppress(IndexError):  # other threads take connections meanwhile
            for _ in range(len(idle)):
                line = idle.pop(0)
                if line.hung_up():
                    line.sock.close()
                else:
                    idle.append(line)
        if idle is not self._idle:
            _hang_up(idle)  # close() was called meanwhile

    def close(self) -> None:
        """Close idle connections at once, and the others as soon as their calls are over."""
        idle, self._idle = self._idle, []
        _hang_up(idle)

    def _connect(self, time: TimeToWait) -> _Line:
        try:
            address = time.during(lambda seconds: self._address())
        except TimeoutError as exc:
            raise unconnected(exc) from exc
        try:
            return _Line(address, self._budget, time, self._patience)
        except (OSError, hiredis.HiredisError, StoreError) as exc:
            self._on_lost(address)
            if isinstance(exc, StoreError):
                raise
            raise unconnected(exc) from exc

    def after_fork(self) -> None:
        """Close the connections in a child process only, as they belong to the parent."""
        inherited, self._idle = self._idle, []
        _hang_up(inherited)


def _hang_up(idle: list[_Line]) -> None:
    with contextlib.suppress(IndexError):  # several threads may do this at once
        while True:
            idle.pop().sock.close()


def ask_once(address: Address, command: bytes, budget: float, patience: Patience) -> Any:
    """
    Send one command on a connection of its own and return the reply.

    Args:
        patience: That of all who ask for the same, so that only one of them waits longer on a busy host.
    Raises:
        StoreError: There is no usable reply within *budget* seconds, or a little more.
    """
    try:
        line = _Line(address, budget, TimeToWait(budget), patience)
    except (OSError, hiredis.HiredisError) as exc:
        raise unconnected(exc) from exc
    with contextlib.closing(line.sock):
        try:
            line.send(command)
            reply = line.read(line.deadline)
        except (OSError, hiredis.HiredisError) as exc:
            raise _as_trouble(exc) from exc
    patience.answered = line.deadline
    if type(reply) is hiredis.ReplyError:
        raise trouble(reply)
    return reply


def _as_trouble(exc: BaseException) -> BaseException:
    if isinstance(exc, _TIMEOUTS):
        return StoreError("timeout")
    if isinstance(exc, OSError):
        return StoreError("connection", str(exc))
    if isinstance(exc, hiredis.HiredisError):
        return StoreError("protocol", str(exc))
    return exc
