"""The control plane's connections to the store."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import redis
from django.conf import settings

from enforcement.model.documents import StateName, epoch_of
from enforcement.model.keys import Keys
from enforcement.store.client import connect

# A task may wait longer than a request, and a full publication takes several seconds.
TASK_TIMEOUT_SECONDS = 10.0


def connection(timeout: float = TASK_TIMEOUT_SECONDS) -> redis.Redis:
    """Return this process's client of the store, which waits at most *timeout* seconds for each reply."""
    return _connection(settings.REDIS_URL, timeout)


@lru_cache(maxsize=8)
def _connection(url: str, timeout: float) -> redis.Redis:
    # Other programs may have written bytes that are not UTF-8. They are read as a wrong value, which is then repaired.
    return connect(url, timeout=timeout, encoding_errors="replace")


def keys() -> Keys:
    """Return the names of the store's keys, with the configured prefix."""
    return Keys(settings.STORE_PREFIX)


@dataclass(frozen=True, slots=True)
class StoreState:
    """
    The revision and the identity that the store holds.

    The revision is 0 and the id is empty if the store is empty, or if its revision is not a number.
    """

    revision: int
    store_id: str
    fields: int

    @classmethod
    def read(cls, client: redis.Redis) -> Self:
        """Return the revision, the id and the number of fields of the store's documents. Raises one of STORE_ERRORS."""
        documents = keys().documents
        with client.pipeline(transaction=True) as pipe:
            pipe.hmget(documents, "revision", "store_id")
            pipe.hlen(documents)
            (revision, store_id), fields = pipe.execute()
        return cls(int(revision) if revision and revision.isdecimal() else 0, store_id or "", fields)

    @property
    def name(self) -> StateName:
        return StateName(epoch_of(self.store_id), self.revision)

    @property
    def is_empty(self) -> bool:
        return not self.revision or not self.store_id
