"""
The store as redis-py reaches it, for everything but the hot path: documents, the log, heartbeats, functions.

redis-py's own defaults hold a call for up to a minute and may run it twice; here every call has one try and one short
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as StoreTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from enforcement.lua import library_source
from enforcement.plan.commands import StoreError, trouble
from enforcement.store.cluster import ClusterClient
from enforcement.store.sentinel import Sentinels
from enforcement.store.slot_map import SlotMap
from enforcement.store.topology import HostPort, Topology

DEFAULT_TIMEOUT: Final = 1.0
STORE_ERRORS: Final = (RedisError, OSError)
"""All that a store which is away, slow or lying may raise. redis-py leaves some socket errors unwrapped."""


def connect(url: str, *, timeout: float = DEFAULT_TIMEOUT, **options: Any) -> Redis:
    """
    Return a client of a store. No I/O happens before the first call.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` of one server, ``redis+sentinel://`` or ``redis+cluster://``.
        timeout: Seconds for connecting, and for an answer.
        options: More of redis-py's connection keywords.
    Raises:
        ValueError: *url* is none of these.
    """
    topology = Topology.parse(url)
    if topology.kind == "cluster":
        return ClusterClient(SlotMap(topology, timeout), node_client(topology, timeout, **options))
    if topology.kind == "sentinel":
        return primary_client(Sentinels(topology, timeout), topology, timeout, **options)
    return Redis.from_url(url, **_keywords(timeout, options))


def node_client(topology: Topology, timeout: float, **options: Any) -> Callable[[str, int], Redis]:
    """Return what makes the client of one node of a cluster, by its host and port."""
    return lambda host, port: Redis.from_url(topology.url_of(host, port), **_keywords(timeout, options))


def primary_client(sentinels: Sentinels, topology: Topology, timeout: float, **options: Any) -> Redis:
    """Return redis-py's client of a primary; the sentinels are asked for each of its connections."""
    server, keywords = _parsed(topology.url_of("host", 1)), _keywords(timeout, options)
    client: Redis = _Finder(sentinels).master_for(topology.service, **server, **keywords)  # type: ignore[no-untyped-call]
    return client


class _Finder(Sentinel):
    """What redis-py asks where the primary is."""

    def __init__(self, sentinels: Sentinels) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self._ours = sentinels

    def discover_master(self, service_name: str) -> HostPort:
        try:
            found = self._ours.find()
        except StoreError as exc:
            raise MasterNotFoundError(str(exc)) from exc
        return found.host, found.port


def _parsed(url: str) -> dict[str, Any]:
    """Return a URL's connection keywords but host and port, as redis-py's sentinels take them."""
    parts: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    tls = url.startswith("rediss://")
    return {name: value for name, value in parts.items() if name not in ("host", "port", "connection_class")} | {
        "ssl": tls
    }


def _keywords(timeout: float, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": True,
        **options,
    }


def pool_of(client: Redis, key: str) -> ConnectionPool:
    """Return the pool of connections to the server that has a key. Raises redis-py's errors."""
    return client.pool_of(key) if isinstance(client, ClusterClient) else client.connection_pool


def disconnect(client: Redis) -> None:
    """Drop the connections of a client: what is pooled may hold half an answer, or lead to a host that is no more."""
    if isinstance(client, ClusterClient):
        client.reconnect()
    else:
        client.connection_pool.disconnect()


def let_go(client: Redis) -> None:
    """
    In a forked child, close its copies of the parent's connections, without a word to the store.

    A thread that used one at the moment of the fork does not exist here, and would hold it for ever.
    """
    pool = None if isinstance(client, ClusterClient) else client.connection_pool
    # redis-py's own way out of a fork forgets those in use; the names are its private ones, hence the caution.
    for name in ("_available_connections", "_in_use_connections"):
        for connection in list(getattr(pool, name, ())):
            connection.disconnect()


def cause_of(error: Exception) -> str:
    """Return the word for one of :data:`STORE_ERRORS` under which it is counted, as ``StoreError.cause`` has it."""
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return cause
    if isinstance(error, ResponseError):
        return trouble(error).cause
    return "maxclients" if "max number of clients" in str(error) else "connection"


# redis-py takes the first word off the replies that it has a class for. Narrower classes come first.
_CAUSES: Final = (
    ((AuthenticationError, AuthorizationError, NoPermissionError), "auth"),
    (BusyLoadingError, "loading"),
    (OutOfMemoryError, "oom"),
    (ReadOnlyError, "readonly"),
    ((StoreTimeoutError, TimeoutError), "timeout"),
)


def load_library(client: Redis) -> None:
    """Give the store the function library, replacing the same version of it. Raises redis-py's errors."""
    client.function_load(library_source(), replace=True)


def is_unknown_function(error: Exception) -> bool:
    """Tell whether the store lost, or never had, the function library."""
    return isinstance(error, ResponseError) and "function not found" in str(error).lower()


__all__ = [
    "DEFAULT_TIMEOUT",
    "STORE_ERRORS",
    "StoreTimeoutError",
    "cause_of",
    "connect",
    "disconnect",
    "is_unknown_function",
    "let_go",
    "load_library",
    "node_client",
    "pool_of",
    "primary_client",
]
