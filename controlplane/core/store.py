"""The control plane's connections to the store."""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Self

import redis
from django.conf import settings

from enforcement.model.documents import InvalidDocument, StateName, epoch_of, parse_identity, parse_revision
from enforcement.model.keys import Keys
from enforcement.store.base_client import StoreClient
from enforcement.store.client import STORE_ERRORS, cause_of, connect

# A task may wait longer than a request, and a full publication takes several seconds.
TASK_TIMEOUT_SECONDS = 10.0


# Causes of STORE_ERRORS, in words for people who look after the store.
_REASONS = {
    "timeout": "The store did not answer in time.",
    "connection": "Nothing answers at the address of the store.",
    "auth": "The store refuses the account or the password of the control plane.",
    "loading": "The store is still loading its data.",
    "oom": "The store has no memory left.",
    "readonly": "The server at the address of the store is a replica, which refuses writes.",
    "maxclients": "The store has as many connections as it allows.",
    "misconf": "The store refuses writes, because it cannot save its data.",
    "library": "The store has no function library.",
}


MEANWHILE = "Changes are saved, and published when it is back. Until then, proxies decide by each limit's rule."
"""A sentence for people that follows the reason why the store is unavailable."""


def reason_of(error: Exception) -> str:
    """Return a sentence that says why the store could not be used, from one of STORE_ERRORS."""
    cause = cause_of(error)
    return _REASONS.get(cause, f"The store answered with an error ({cause}).")


def connection(timeout: float = TASK_TIMEOUT_SECONDS) -> StoreClient:
    """Return this process's shared client of the store, which waits at most *timeout* seconds for each reply."""
    return _connection(settings.REDIS_URL, timeout)


@lru_cache(maxsize=8)
def _connection(url: str, timeout: float) -> StoreClient:
    # Other programs may have written bytes that are not UTF-8. They are read as a wrong value, which is then repaired.
    return connect(url, timeout=timeout, encoding_errors="replace")


def answers() -> bool:
    """Return whether the store responds in the time that a request may wait."""
    try:
        return bool(connection(settings.PUBLISH_TIMEOUT_SECONDS).ping())
    except STORE_ERRORS:
        return False


def now() -> datetime | None:
    """Return the store's time, by which proxies compare ends, or None if the store does not answer."""
    try:
        return time_of(connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except STORE_ERRORS:
        return None


def time_of(client: redis.Redis) -> datetime:
    """Return the time of the store that a client uses. Raises one of STORE_ERRORS."""
    seconds, microseconds = client.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def keys() -> Keys:
    """Return the names of the store's keys, with the configured prefix."""
    return Keys(settings.STORE_PREFIX)


@dataclass(frozen=True, slots=True)
class StoreState:
    """
    The revision and the identity that the store holds.

    Each of them is 0 or empty if the store has none, or one that no enforcer can read.
    """

    revision: int
    store_id: str
    fields: int

    @classmethod
    def read(cls, client: redis.Redis) -> Self:
        """
        Read the revision, the id and the number of fields of the store's documents, and return them as a StoreState.
        Raises one of STORE_ERRORS.
        """
        documents = keys().documents
        with client.pipeline(transaction=True) as pipe:
            pipe.hmget(documents, "revision", "store_id")
            pipe.hlen(documents)
            (revision, store_id), fields = pipe.execute()
        result = cls(0, "", fields)
        with suppress(InvalidDocument):
            result = replace(result, revision=parse_revision(revision or ""))
        with suppress(InvalidDocument):
            result = replace(result, store_id=parse_identity(store_id or ""))
        return result

    @property
    def name(self) -> StateName:
        return StateName(epoch_of(self.store_id), self.revision)

    @property
    def is_empty(self) -> bool:
        return not self.revision or not self.store_id
