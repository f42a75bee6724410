"""
The store as redis-py reaches it, for everything but the hot path: documents, the log, heartbeats, functions.

redis-py's own defaults hold a call for up to a minute and may run it twice; here every call has one try and one short
time.
"""

from __future__ import annotations

from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as StoreTimeoutError
from redis.retry import Retry

from enforcement.lua import library_source

DEFAULT_TIMEOUT: Final = 1.0
STORE_ERRORS: Final = (RedisError, OSError)
"""All that a store which is away, slow or lying may raise. redis-py leaves some socket errors unwrapped."""


def connect(url: str, *, timeout: float = DEFAULT_TIMEOUT, **options: Any) -> Redis:
    """
    Return a client of a single store. No I/O happens before the first call.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout: Seconds for connecting, and for an answer.
        options: More of redis-py's connection keywords.
    Raises:
        ValueError: *url* is none of these.
    """
    keywords: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "decode_responses": True,
        **options,
    }
    return Redis.from_url(url, **keywords)


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
    "connect",
    "is_unknown_function",
    "load_library",
]
