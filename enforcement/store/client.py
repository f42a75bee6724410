"""
Reach the store through redis-py, for documents, the change log, heartbeats and functions.

By redis-py's defaults a call may take a minute and may be executed twice. Here each call has one try and a short
timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

from redis import Redis
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
from enforcement.store.base_client import StoreClient
from enforcement.store.cluster.client import ClusterClient
from enforcement.store.cluster.slot_map import SlotMap
from enforcement.store.errors import FULL, StoreError, trouble
from enforcement.store.sentinel import Sentinels
from enforcement.store.topology import HostPort, Topology

T = TypeVar("T")

DEFAULT_TIMEOUT: Final = 1.0
READ_BYTES: Final = 8_192
"""The buffer of a connection. redis-py would take four times as much, a third of what an idle limiter holds."""
STORE_ERRORS: Final = (RedisError, OSError)
"""The errors of a store that is unavailable, slow or returns garbage. redis-py does not wrap all socket errors."""


def connect(url: str, *, timeout: float = DEFAULT_TIMEOUT, **options: object) -> StoreClient:
    """
    Return a new redis-py client of a store, which is a server, a cluster or a primary found by sentinels. It does no
    I/O before the first call.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` of one server, ``redis+sentinel://`` or ``redis+cluster://``.
        timeout: Seconds for connecting, and for each reply.
        options: More of redis-py's connection keywords.
    Raises:
        ValueError: *url* is none of these.
    """
    return client_of(Topology.parse(url), timeout, **options)


def client_of(topology: Topology, timeout: float, **options: object) -> StoreClient:
    """Return a new redis-py client of the store of a topology, as :func:`connect` does."""
    if topology.kind == "cluster":
        return ClusterClient(SlotMap(topology, timeout), node_client(topology, timeout, **options))
    if topology.kind == "sentinel":
        return primary_client(Sentinels(topology, timeout), topology, timeout, **options)
    return _server_client(topology.url, timeout, {**topology.client_options, **options})


def node_client(topology: Topology, timeout: float, **options: object) -> Callable[[str, int], StoreClient]:
    """Return a function that returns a new client of one node of a cluster for its host and port."""
    more = {**topology.client_options, **options}
    return lambda host, port: _server_client(topology.url_of(host, port), timeout, more)


def _server_client(url: str, timeout: float, options: Mapping[str, object]) -> StoreClient:
    # redis-py declares that this returns its own class, though it returns ours.
    return cast(StoreClient, StoreClient.from_url(url, **_keywords(timeout, options)))


def primary_client(sentinels: Sentinels, topology: Topology, timeout: float, **options: object) -> StoreClient:
    """Return a new client of a primary that asks the sentinels for the address of each new connection."""
    more = _keywords(timeout, {**topology.client_options, **options})
    keywords = {**_parsed(topology.url_of("host", 1)), **more, "redis_class": StoreClient}
    client: StoreClient = _Finder(sentinels).master_for(topology.service, **keywords)  # type: ignore[no-untyped-call]
    return client


class _Finder(Sentinel):
    """Tell redis-py where the primary is."""

    def __init__(self, sentinels: Sentinels) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]
        self._ours = sentinels

    def discover_master(self, service_name: str) -> HostPort:
        try:
            found = self._ours.find()
        except StoreError as exc:
            raise MasterNotFoundError(str(exc)) from exc
        return found.host, found.port


def _parsed(url: str) -> dict[str, object]:
    """Return the connection keywords in a URL, except for host and port, in the form that redis-py's Sentinel takes."""
    parts: dict[str, object] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    tls = url.startswith("rediss://")
    return {name: value for name, value in parts.items() if name not in ("host", "port", "connection_class")} | {
        "ssl": tls
    }


def _keywords(timeout: float, options: Mapping[str, object]) -> dict[str, object]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "socket_read_size": READ_BYTES,
        "protocol": 2,
        "decode_responses": True,
        **options,
    }


def cause_of(error: Exception) -> str:
    """Return the cause of one of :data:`STORE_ERRORS`, in one word like ``StoreError.cause``."""
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return cause
    if isinstance(error, ResponseError):
        return trouble(error).cause
    return FULL if "max number of clients" in str(error) else "connection"


# redis-py removes the first word of error replies that it has a class for. Subclasses come before their base classes.
_CAUSES: Final = (
    ((AuthenticationError, AuthorizationError, NoPermissionError), "auth"),
    (BusyLoadingError, "loading"),
    (OutOfMemoryError, "oom"),
    (ReadOnlyError, "readonly"),
    ((StoreTimeoutError, TimeoutError), "timeout"),
)


def reported(error: Exception) -> str:
    """Return what a log line says of an error of the store. If the account lacks a right, it says what to do."""
    lacks = "permission" in str(error).lower()
    return f"{error}{'. Update the accounts with manage.py store_acl --apply.' if lacks else ''}"


def load_library(client: Redis) -> None:
    """Load the function library into the store, replacing the same version. Raises redis-py's errors."""
    client.function_load(library_source(), replace=True)


def is_refusal(exc: Exception) -> bool:
    """Return whether an error says that this account lacks a right, or that a key has the wrong type."""
    return isinstance(exc, ResponseError) and (isinstance(exc, NoPermissionError) or str(exc).startswith("WRONGTYPE"))


def is_unknown_function(error: Exception) -> bool:
    """Return whether an error says that the store does not have the function library."""
    return isinstance(error, ResponseError) and "function not found" in str(error).lower()


def call_function(
    client: Redis,
    name: str,
    keys: Sequence[str],
    args: Sequence[str | int],
    *,
    on_load: Callable[[], None] = lambda: None,
) -> Any:
    """
    Call a function of the library in the store, after loading a missing library, and return its reply.

    Args:
        on_load: Called after the library was loaded.
    Raises:
        RedisError: The function failed, or the library could not be loaded.
    """
    return with_library(client, lambda: client.fcall(name, len(keys), *keys, *args), on_load=on_load)


def with_library(client: Redis, act: Callable[[], T], *, on_load: Callable[[], None] = lambda: None) -> T:
    """
    Call *act*, again after loading the function library if the store lacks it, and return its result. See
    :func:`call_function`.
    """
    try:
        return act()
    except ResponseError as exc:
        if not is_unknown_function(exc):
            raise
    load_library(client)
    on_load()
    return act()
