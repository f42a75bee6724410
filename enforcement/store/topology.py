"""
What a store's URL says: one server, a primary that sentinels know, or a cluster. No I/O but reading TLS files.

``redis://``, ``rediss://`` and ``unix://`` are redis-py's. The two others name several hosts::

    redis+sentinel://[user:password@]host1[:26379],host2/service[/database][?options]
    redis+cluster://[user:password@]host1[:6379],host2[?options]

With ``rediss+`` everything is TLS. The account is the servers'; sentinels that ask for one have it in the options
``sentinel_username`` and ``sentinel_password``. All other options are redis-py's, for every server alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

from enforcement.store.address import Address, checked_host

SINGLE_SCHEMES: Final = ("redis", "rediss", "unix")
SENTINEL_PORT: Final = 26_379
SERVER_PORT: Final = 6_379
SENTINEL_ACCOUNT: Final = ("sentinel_username", "sentinel_password")

Kind = Literal["single", "sentinel", "cluster"]
HostPort = tuple[str, int]
"""Host and port."""

_SEVERAL: Final = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<account>[^/?#]*)@)?"
    r"(?P<hosts>[^/?#@]*)(?P<path>/[^?#@]*)?(?:\?(?P<query>[^#@]*))?"
)
_HOST: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>.*))?")


@dataclass(frozen=True, slots=True)
class Topology:
    """
    How to reach a store.

    Attributes:
        places: The sentinels, or some nodes of the cluster, at which to ask first; empty for a single store.
        service: What the sentinels call the primary.
    """

    kind: Kind
    url: str
    places: tuple[HostPort, ...] = ()
    service: str = ""
    _around_server: tuple[str, str] = ("", "")
    _server: Address | None = None
    _sentinel: Address | None = None

    @classmethod
    def parse(cls, url: str) -> Topology:
        """
        Read a URL.

        Raises:
            ValueError: It cannot be used; the text names the part, and never the password.
        """
        text = url if isinstance(url, str) else ""
        if text.partition("://")[0] in SINGLE_SCHEMES:
            return cls("single", url, _server=Address.from_url(url))
        found = _SEVERAL.fullmatch(text)
        if found is None:
            raise ValueError(
                "url: must begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (rediss+ for "
                "TLS), and name hosts; characters such as @ / ? # in a password are written as %40 and so on."
            )
        kind: Kind = "sentinel" if found["kind"] == "sentinel" else "cluster"
        places = _places(found["hosts"], SENTINEL_PORT if kind == "sentinel" else SERVER_PORT)
        service, database = _path(kind, found["path"] or "")
        query, sentinel_account = _options(kind, found["query"] or "")
        account = f"{found['account']}@" if found["account"] else ""
        server = f"{found['scheme']}://{account}", f"/{database}{query}"
        sentinel = f"{found['scheme']}://{sentinel_account}", f"/0{query}"
        return cls(
            kind,
            url,
            places,
            service,
            server,
            Address.from_url("host:1".join(server)),
            Address.from_url("host:1".join(sentinel)),
        )

    def url_of(self, host: str, port: int) -> str:
        """Return the URL of one server, as redis-py reads it."""
        return f"{_bracketed(host)}:{port}".join(self._around_server)

    @property
    def address(self) -> Address:
        """How to connect to a single store."""
        assert self._server is not None
        return self._server

    def address_of(self, host: str, port: int) -> Address:
        """Return how to connect to one server."""
        return replace(self.address, host=host, port=port)

    def sentinel_address(self, host: str, port: int) -> Address:
        """Return how to connect to one sentinel."""
        assert self._sentinel is not None
        return replace(self._sentinel, host=host, port=port)


def _places(hosts: str, default_port: int) -> tuple[HostPort, ...]:
    places = []
    for number, text in enumerate(hosts.split(","), start=1):
        found = _HOST.fullmatch(text)
        if found is None:
            raise ValueError(
                f"url: host {number} of {hosts!r} is no name, address or [IPv6 address], with a port or without."
            )
        port = default_port if found["port"] is None else _whole(found["port"])
        if not 1 <= port <= 65_535:
            raise ValueError(f"url: the port of host {number}, {text!r}, must be a whole number from 1 to 65535.")
        places.append((checked_host(unquote(found["host"].strip("[]"))), port))
    if len(set(places)) != len(places):
        raise ValueError(f"url: {hosts!r} names a host twice.")
    return tuple(places)


def _path(kind: Kind, path: str) -> tuple[str, int]:
    first, *rest = [unquote(part) for part in path.removeprefix("/").split("/")]
    if kind == "cluster":
        if first not in ("", "0") or any(rest):
            raise ValueError("url: a cluster has no databases; nothing may follow the hosts.")
        return "", 0
    if not first:
        raise ValueError("url: the name of the service must follow the sentinels, as in .../mymaster.")
    database = _whole(rest[0]) if rest and rest[0] else 0
    if len(rest) > 1 or database < 0:
        raise ValueError("url: only the number of a database may follow the service, as in .../mymaster/0.")
    return first, database


def _options(kind: Kind, query: str) -> tuple[str, str]:
    """Return the options for every server, as a query, and the account at the sentinels."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    own = {name: options.pop(name) for name in SENTINEL_ACCOUNT if name in options}
    if own and kind != "sentinel":
        raise ValueError(f"url: {', '.join(own)} is for redis+sentinel:// only.")
    if "sentinel_username" in own and "sentinel_password" not in own:
        raise ValueError("url: sentinel_username needs sentinel_password.")
    if "db" in options:
        raise ValueError("url: the database stands in the path, as in .../mymaster/0, and a cluster has none.")
    account = ":".join(quote(own.get(name, ""), safe="") for name in SENTINEL_ACCOUNT)
    return f"?{urlencode(options)}" if options else "", f"{account}@" if own else ""


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else -1


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


__all__ = ["HostPort", "Topology"]
