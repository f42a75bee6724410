"""
Parse the URL of a store, which may be one server, a primary behind sentinels, or a cluster.

``redis://``, ``rediss://`` and ``unix://`` work as in redis-py, and ``valkey`` may stand for ``redis`` everywhere. Two
more schemes name several hosts::

    redis+sentinel://[user:password@]host1[:26379],host2/service[/database][?options]
    redis+cluster://[user:password@]host1[:6379],host2[?options]

With ``rediss+`` all connections use TLS. User and password are those of the servers. The account at the sentinels, if
they need one, is in the options ``sentinel_username`` and ``sentinel_password``. All other options are redis-py's, and
apply to every server. Parsing does no I/O, except for reading TLS files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode

from enforcement.store.address import Address, checked_host
from enforcement.store.credentials import Credentials, Provider
from enforcement.store.errors import MAX_PORT

SINGLE_SCHEMES: Final = ("redis", "rediss", "unix")
SENTINEL_PORT: Final = 26_379
SERVER_PORT: Final = 6_379
SENTINEL_ACCOUNT: Final = ("sentinel_username", "sentinel_password")

Kind = Literal["single", "sentinel", "cluster"]
HostPort = tuple[str, int]

_SEVERAL: Final = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<account>[^/?#]*)@)?"
    r"(?P<hosts>[^/?#@]*)(?P<path>/[^?#@]*)?(?:\?(?P<query>[^#@]*))?"
)
_VALKEY: Final = re.compile(r"\Avalkey(?=s?(?:\+(?:sentinel|cluster))?://)")
_HOST: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>.*))?")


@dataclass(frozen=True, slots=True)
class Topology:
    """
    The address or addresses of a store.

    Attributes:
        hosts: The sentinels, or some nodes of the cluster, to ask first; empty for a single store.
        service: The name of the primary at the sentinels.
    """

    kind: Kind
    url: str
    hosts: tuple[HostPort, ...] = ()
    service: str = ""
    _around_server: tuple[str, str] = ("", "")
    _server: Address | None = None
    _sentinel: Address | None = None

    @classmethod
    def parse(cls, url: str, credentials: Credentials | None = None) -> Topology:
        """
        Return a new topology from a URL, or raise ValueError.

        Args:
            credentials: Returns user and password of the servers, if the URL does not have them. None: it has, or there
                are none.
        Raises:
            ValueError: The URL cannot be used. The message names the wrong part, but never contains the password.
        """
        text = url = redis_url(url) if isinstance(url, str) else ""
        if text.partition("://")[0] in SINGLE_SCHEMES:
            return cls("single", url, _server=_server(url, credentials))
        matched = _SEVERAL.fullmatch(text)
        if matched is None:
            raise ValueError(
                "url: must begin with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (rediss+ for "
                "TLS, valkey for redis), and name hosts; write @ / ? # in a password as %40 and so on."
            )
        kind: Kind = "sentinel" if matched["kind"] == "sentinel" else "cluster"
        hosts = _hosts(matched["hosts"], SENTINEL_PORT if kind == "sentinel" else SERVER_PORT)
        service, database = _path(kind, matched["path"] or "")
        query, sentinel_account = _options(kind, matched["query"] or "")
        account = f"{matched['account']}@" if matched["account"] else ""
        server = f"{matched['scheme']}://{account}", f"/{database}{query}"
        sentinel = f"{matched['scheme']}://{sentinel_account}", f"/0{query}"
        return cls(
            kind,
            url,
            hosts,
            service,
            server,
            _server("host:1".join(server), credentials),
            Address.from_url("host:1".join(sentinel)),
        )

    def url_of(self, host: str, port: int) -> str:
        """Return the URL of one server of this store, for redis-py."""
        return f"{_bracketed(host)}:{port}".join(self._around_server)

    @property
    def client_options(self) -> dict[str, object]:
        """New keywords for redis-py that are not in :attr:`url`, which are the provider of credentials or none."""
        credentials = self.address.credentials
        return {} if credentials is None else {"credential_provider": Provider(credentials)}

    @property
    def address(self) -> Address:
        """The address of a store that is a single server."""
        assert self._server is not None
        return self._server

    def address_of(self, host: str, port: int) -> Address:
        """Return the address of one server of this store."""
        return replace(self.address, host=host, port=port)

    def sentinel_address(self, host: str, port: int) -> Address:
        """Return the address of one sentinel of this store."""
        assert self._sentinel is not None
        return replace(self._sentinel, host=host, port=port)


def _server(url: str, credentials: Credentials | None) -> Address:
    address = Address.from_url(url)
    if credentials is not None and (address.username or address.password):
        raise ValueError("credentials: must be None if the URL names a user or a password.")
    return replace(address, credentials=credentials)


def redis_url(url: str) -> str:
    """Return a URL with ``redis`` in place of ``valkey``, or any other URL unchanged."""
    return _VALKEY.sub("redis", url)


def _hosts(text: str, default_port: int) -> tuple[HostPort, ...]:
    hosts = []
    for number, part in enumerate(text.split(","), start=1):
        matched = _HOST.fullmatch(part)
        if matched is None:
            raise ValueError(
                f"url: host {number} of {text!r} must be a name, an address or an [IPv6 address]; a port may follow."
            )
        port = default_port if matched["port"] is None else _integer(matched["port"])
        if not 1 <= port <= MAX_PORT:
            raise ValueError(f"url: the port of host {number}, {part!r}, must be an integer from 1 to {MAX_PORT}.")
        hosts.append((checked_host(unquote(matched["host"].strip("[]"))), port))
    if len(set(hosts)) != len(hosts):
        raise ValueError(f"url: {text!r} names a host twice.")
    return tuple(hosts)


def _path(kind: Kind, path: str) -> tuple[str, int]:
    """Return the name of the service and the number of the database that follow the hosts, "" and 0 for a cluster."""
    first, *rest = [unquote(part) for part in path.removeprefix("/").split("/")]
    if kind == "cluster":
        if first not in ("", "0") or any(rest):
            raise ValueError("url: a cluster has no databases; nothing may follow the hosts.")
        return "", 0
    if not first:
        raise ValueError("url: the name of the service must follow the sentinels, as in .../mymaster.")
    database = _integer(rest[0]) if rest and rest[0] else 0
    if len(rest) > 1 or database < 0:
        raise ValueError("url: only the number of a database may follow the service, as in .../mymaster/0.")
    return first, database


def _options(kind: Kind, query: str) -> tuple[str, str]:
    """Return the query string with the options of every server, and the account at the sentinels, each may be empty."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    own = {name: options.pop(name) for name in SENTINEL_ACCOUNT if name in options}
    if own and kind != "sentinel":
        raise ValueError(f"url: {', '.join(own)} is for redis+sentinel:// only.")
    if "sentinel_username" in own and "sentinel_password" not in own:
        raise ValueError("url: sentinel_username needs sentinel_password.")
    if "db" in options:
        raise ValueError("url: the database belongs in the path, as in .../mymaster/0; a cluster has none.")
    account = ":".join(quote(own.get(name, ""), safe="") for name in SENTINEL_ACCOUNT)
    return f"?{urlencode(options)}" if options else "", f"{account}@" if own else ""


def _integer(text: str) -> int:
    """Return a small integer that is not negative, or -1 for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else -1


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
