"""Notice that the store evicts keys. It forgets counters then, so more is admitted than the limits allow."""

from __future__ import annotations

from typing import Final

from redis import Redis
from redis.exceptions import InvalidResponse, NoPermissionError

from enforcement.engine.store_clock import StoreClock
from enforcement.engine.store_warnings import StoreWarnings
from enforcement.store.base_client import StoreClient
from enforcement.store_calls.instances import EVICTING

EVICTION_SECONDS: Final = 5.0
"""How often a server is asked."""
REPORTED_SECONDS: Final = 600.0
"""How long an eviction is reported after it was seen."""


class EvictionWatch:
    """
    Compares the number of keys that each server has evicted with the number before.

    Args:
        client: Reads the store.
        clock: Its monotonic time is used.
        warnings: Gets the problem.
    """

    def __init__(self, client: StoreClient, clock: StoreClock, warnings: StoreWarnings) -> None:
        self._client = client
        self._clock = clock
        self._warnings = warnings
        self._evicted: dict[str, int] = {}
        self._seen_at: float | None = None
        self._may_ask = True

    def look(self) -> None:
        """Ask every server whether it evicts keys, and begin or end the warning about it. Raises redis-py's errors."""
        if not self._may_ask:
            return
        now = self._clock.monotonic()
        try:
            grew = [self._grew(name, _evicted(server)) for name, server in self._client.primaries()]
        except NoPermissionError:
            self._may_ask = False  # an account of release 0.2; each further try would add to the server's ACL LOG
            raise
        if any(grew):
            self._seen_at = now
            text = "The store evicts keys, so counters are lost and limits admit more: set maxmemory-policy noeviction."
            self._warnings.begin(EVICTING, text)
        elif self._seen_at is not None and now - self._seen_at > REPORTED_SECONDS:
            self._seen_at = None
            self._warnings.end(EVICTING, "The store has evicted no key for ten minutes.")

    def _grew(self, server: str, evicted: int) -> bool:
        """Return whether a server has evicted keys since it was asked before. The first reply is no growth."""
        before = self._evicted.get(server, evicted)
        self._evicted[server] = evicted
        return evicted > before


def _evicted(server: Redis) -> int:
    """
    Return how many keys a server has evicted since it started, or raise one of redis-py's errors.

    Raises:
        InvalidResponse: The reply is not one to INFO. redis-py reads it without checking what it is.
    """
    try:
        return int(server.info("stats").get("evicted_keys", 0))
    except (AttributeError, IndexError, TypeError, ValueError) as exc:
        raise InvalidResponse(f"the reply to INFO cannot be read: {exc}") from exc
