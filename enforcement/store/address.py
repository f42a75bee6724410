"""Where one server of the store is, how it wants to be greeted, and a connection to it in the time that there is."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit

from redis.connection import ConnectionPool, parse_url
from redis.exceptions import RedisError

from enforcement.plan.commands import pack


@dataclass(frozen=True, slots=True)
class Address:
    """Where the store is, and how it wants to be greeted."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None

    @classmethod
    def from_url(cls, url: str) -> Address:
        """
        Read a URL as redis-py does, but leave nothing of it unread.

        Raises:
            ValueError: The scheme is none of the three, the host none that can be, or another part cannot be used; the
                text never holds the password.
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
        """Return what to send on a new connection, and how many replies it gets."""
        commands: list[tuple[str | int, ...]] = []
        if self.password:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        return b"".join(map(pack, commands)), len(commands)

    def connect(self, deadline: float) -> socket.socket:
        """
        Return a connection, proven by TLS if it has to be.

        Args:
            deadline: Monotonic seconds. Finding the host's address, connecting and TLS together have no more time.
        Raises:
            OSError: There is none; a TimeoutError if there is none in time.
        """
        sock = self._reach(deadline)
        if self.tls is None:
            return sock
        try:
            sock.settimeout(left_until(deadline))
            return self.tls.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def _reach(self, deadline: float) -> socket.socket:
        if self.path:
            return _connected(socket.AF_UNIX, self.path, deadline)
        trouble = OSError(f"{self.host!r} has no address")
        for family, place in _places(self.host, self.port, deadline):
            try:
                sock = _connected(family, place, deadline)
            except OSError as exc:
                trouble = exc
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        raise trouble


def _check_url(url: str) -> None:
    """Refuse what redis-py would pass over, or find out when it first connects. Raises ValueError."""
    split = urlsplit(url)
    try:
        _ = split.port
    except ValueError:  # its text may hold a part of the password, where that was not quoted
        text = "url: the port must be a whole number up to 65535; @ / ? # in a password are written as %40 and so on."
        raise ValueError(text) from None
    if split.scheme != "unix" and not re.fullmatch("/?[0-9]*", split.path):
        raise ValueError("url: only the number of a database may follow the host, as in redis://127.0.0.1:6379/0.")
    try:
        ConnectionPool.from_url(url).make_connection()  # which connects to nothing
    except (TypeError, ValueError, RedisError) as exc:
        raise ValueError(f"url: its options cannot be used: {exc}") from exc


def checked_host(host: str) -> str:
    """Return a host's name or address. Raises ValueError if nobody will ever find one of this name."""
    if not all(1 <= len(label) <= 63 for label in host.removesuffix(".").split(".")):
        raise ValueError(f"url: {host!r} is no host; the parts between its dots have 1 to 63 characters.")
    return host


def left_until(deadline: float) -> float:
    """Return the seconds that are left. Raises TimeoutError if none are."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError("the time budget is spent")
    return left


def _tls(parts: dict[str, Any]) -> ssl.SSLContext:
    """Return a context that verifies the store's certificate, unless the URL says otherwise."""
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    if parts.get("ssl_certfile"):
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    if parts.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif parts.get("ssl_check_hostname") is False:
        context.check_hostname = False
    return context


def _connected(family: int, place: Any, deadline: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(left_until(deadline))
        sock.connect(place)
    except BaseException:
        sock.close()
        raise
    return sock


class _Lookup(threading.Thread):
    """
    One question to the system's resolver, which takes seconds when its servers are away, and knows no timeout.

    Attributes:
        found: Family and place of each address.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="sluicegate-lookup", daemon=True)
        self.found: list[tuple[int, Any]] = []
        self.trouble: OSError | None = None
        self._question = host, port

    def run(self) -> None:
        try:
            self.found = _found(*self._question)
        except OSError as exc:
            self.trouble = exc
        except UnicodeError as exc:  # a label that is empty or too long
            self.trouble = OSError(str(exc))


_lookups: Final[dict[tuple[str, int], _Lookup]] = {}
"""The last one of each host. Whoever comes while it is under way waits for the same answer."""


def _places(host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
    """Return family and place of each address of a host. Raises OSError."""
    try:
        return _found(host, port, socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass  # it is a name, then
    lookup = _lookups.get((host, port))
    # In a forked child the parent's threads do not live, and neither does what they were asked.
    if lookup is None or not lookup.is_alive():
        lookup = _Lookup(host, port)
        lookup.start()
        _lookups[host, port] = lookup
    lookup.join(left_until(deadline))
    if lookup.is_alive():
        raise TimeoutError(f"the address of {host!r} was not found in time")
    if lookup.trouble is not None:
        raise lookup.trouble
    return lookup.found


def _found(host: str, port: int, flags: int = 0) -> list[tuple[int, Any]]:
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, place) for family, _, _, _, place in rows]


__all__ = ["Address", "checked_host", "left_until"]
