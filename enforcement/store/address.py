"""The address and credentials of one server of the store, and a connection to it within a time limit."""

from __future__ import annotations

import _socket
import contextlib
import math
import os
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from redis.connection import ConnectionPool, parse_url
from redis.exceptions import RedisError

from enforcement.store.credentials import Credentials
from enforcement.store.resp import pack

T = TypeVar("T")


class TimeToWait:
    """
    How long a thread may still wait for others, in several calls or while it makes a connection.

    What needs no waiting costs nothing of it, however late the thread gets the processor or the interpreter after it.

    Attributes:
        left: Seconds.
    """

    __slots__ = ("left",)

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def during(self, act: Callable[[float], T]) -> T:
        """
        Return what *act* returns, which may wait for as many seconds as it is given.

        Raises:
            TimeoutError: No time is left.
        """
        if self.left <= 0:
            raise TimeoutError("the time budget is used up")
        began = monotonic()
        try:
            result = act(self.left)
        except BaseException:
            self.left -= monotonic() - began
            raise
        took = monotonic() - began
        # A reply that came although the time was over came in time, to a thread that was late. Nobody knows when.
        self.left = self.left - took if took < self.left else self.left / 2
        return result


@dataclass(frozen=True, slots=True)
class Address:
    """Where one server is, and what a new connection to it has to send first."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None
    credentials: Credentials | None = None

    @classmethod
    def from_url(cls, url: str) -> Address:
        """
        Return a new address from a URL, read like redis-py does, or raise ValueError for what redis-py would ignore.

        Raises:
            ValueError: The scheme is unknown, the host is impossible, or another part cannot be used. The message never
                contains the password.
        """
        _check_url(url)
        parts: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        return cls(
            host=checked_host(parts.get("host", "127.0.0.1")),
            port=int(parts.get("port", 6379)),
            path=parts.get("path", ""),
            database=int(parts.get("db", 0)),
            username=parts.get("username") or "",
            password=parts.get("password") or "",
            tls=_tls(parts) if url.startswith("rediss://") else None,
        )

    def greeting(self) -> tuple[bytes, int]:
        """
        Return the encoded commands to send first on a new connection, and how many replies follow.

        Raises:
            OSError: The function for the credentials failed.
        """
        username, password = self._account()
        commands: list[tuple[str | int, ...]] = []
        if password:
            commands.append(("AUTH", username, password) if username else ("AUTH", password))
        if self.database:
            commands.append(("SELECT", self.database))
        return b"".join(map(pack, commands)), len(commands)

    def _account(self) -> tuple[str, str]:
        if self.credentials is None:
            return self.username, self.password
        try:
            username, password = self.credentials()
        except Exception as exc:  # it is the application's code; without credentials the store cannot be reached
            raise OSError(f"credentials: {type(exc).__name__}") from exc
        return username, password

    def connect(self, time: TimeToWait) -> socket.socket:
        """
        Return a newly connected socket, after the TLS handshake if the URL asks for TLS.

        Args:
            time: For name lookup, connecting and TLS handshake together.
        Raises:
            OSError: The server cannot be reached. A TimeoutError: not in time.
        """
        sock, tls = self._reach(time), self.tls
        if tls is None:
            return sock
        try:

            def shake_hands(seconds: float) -> socket.socket:
                sock.settimeout(seconds)
                return tls.wrap_socket(sock, server_hostname=self.host)

            return time.during(shake_hands)
        except BaseException:
            sock.close()
            raise

    def _reach(self, time: TimeToWait) -> socket.socket:
        if self.path:
            return _connected(socket.AF_UNIX, self.path, time)
        trouble = OSError(f"{self.host!r} has no address")
        for family, target in _lookup(self.host, self.port, time):
            try:
                sock = _connected(family, target, time)
            except OSError as exc:
                trouble = exc
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        raise trouble


def _check_url(url: str) -> None:
    """Raise ValueError for parts that redis-py would ignore, or would find wrong only when it connects."""
    try:
        split = urlsplit(url)
    except ValueError:  # a bracket of an IPv6 address is missing
        raise ValueError("url: an IPv6 address must be in brackets, as in redis://[::1]:6379/0.") from None
    try:
        _ = split.port
    except ValueError:  # its message may contain a part of a password that was not quoted
        text = "url: the port must be an integer from 0 to 65535; write @ / ? # in a password as %40 and so on."
        raise ValueError(text) from None
    if split.scheme != "unix" and not re.fullmatch("/?[0-9]*", split.path):
        raise ValueError("url: only the number of a database may follow the host, as in redis://127.0.0.1:6379/0.")
    try:
        ConnectionPool.from_url(url).make_connection()  # this does not connect yet
    except (TypeError, ValueError, RedisError) as exc:
        raise ValueError(f"url: its options cannot be used: {exc}") from exc


def checked_host(host: str) -> str:
    """Return a host's name or address, or raise ValueError if no host can have this name."""
    if not all(1 <= len(label) <= 63 for label in host.removesuffix(".").split(".")):
        raise ValueError(f"url: {host!r} is not a host; each part between dots must have 1 to 63 characters.")
    return host


def is_native(kind: type) -> bool:
    """Return whether a class of sockets is that of Python, and not one that another library has put in its place."""
    return issubclass(kind, _socket.socket)


def check_sockets() -> None:
    """Refuse a process whose sockets another library than gevent has replaced. Raises RuntimeError."""
    module = socket.socket.__module__
    if not is_native(socket.socket) and module.partition(".")[0] != "gevent":
        raise RuntimeError(
            f"Sluicegate does not run on the sockets of {module}. Use threads, asyncio or gevent, and do not patch the "
            "socket module otherwise."
        )


def _tls(parts: dict[str, Any]) -> ssl.SSLContext:
    """Return a TLS context that verifies the store's certificate, unless the URL disables that."""
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    if parts.get("ssl_certfile"):
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    if parts.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif parts.get("ssl_check_hostname") is False:
        context.check_hostname = False
    return context


def _connected(family: int, target: object, time: TimeToWait) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX or not is_native(type(sock)):
            time.during(partial(_connect_within, sock, target))
        else:
            _connect_or_wait(sock, target, time)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_within(sock: socket.socket, target: Any, seconds: float) -> None:
    sock.settimeout(seconds)
    sock.connect(target)


def _connect_or_wait(sock: socket.socket, target: Any, time: TimeToWait) -> None:
    """Connect a socket, and count the time only if the server is not connected at once."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(target)
    watch = select.poll()
    watch.register(sock, select.POLLOUT)
    if not watch.poll(0) and not time.during(lambda seconds: watch.poll(math.ceil(1_000 * seconds))):
        raise TimeoutError("the server did not answer in time")
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(error, os.strerror(error))


class _Resolver(threading.Thread):
    """
    One lookup of a host name. The system's resolver has no timeout, and takes seconds if its servers are unavailable.

    Attributes:
        found: Family and socket address of each result.
        trouble: Why there is no result.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="sluicegate-lookup", daemon=True)
        self.found: list[tuple[int, object]] = []
        self.trouble: OSError | None = None
        self._name = host, port

    def run(self) -> None:
        try:
            self.found = _resolve(*self._name)
        except OSError as exc:
            self.trouble = exc
        except UnicodeError as exc:  # a part of the name is empty or too long
            self.trouble = OSError(str(exc))


_resolvers: Final[dict[tuple[str, int], _Resolver]] = {}
"""The last lookup of each host. Calls that come while it is running wait for the same result."""


def _lookup(host: str, port: int, time: TimeToWait) -> list[tuple[int, object]]:
    """Return a list of the family and the socket address of each address of a host. Raises OSError."""
    try:
        return _resolve(host, port, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass  # it is a name, not an address
    lookup = _resolvers.get((host, port))
    # A forked child has none of its parent's threads, so their lookups never end there.
    if lookup is None or not lookup.is_alive():
        lookup = _Resolver(host, port)
        lookup.start()
        _resolvers[host, port] = lookup
    time.during(lookup.join)
    if lookup.is_alive():
        raise TimeoutError(f"the address of {host!r} was not found in time")
    if lookup.trouble is not None:
        raise lookup.trouble
    return lookup.found


def _resolve(host: str, port: int, flags: int = 0) -> list[tuple[int, object]]:
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, target) for family, _, _, _, target in rows]
