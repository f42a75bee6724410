from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import redis
from django.conf import settings

from enforcement.model.keys import Keys
from enforcement.store.client import connect

# A task may wait: nobody is looking at it, and a full publication takes its time.
TASK_TIMEOUT_SECONDS = 10.0


def connection(timeout: float = TASK_TIMEOUT_SECONDS) -> redis.Redis:
    """Return this process's client of the store; each of its steps ends within *timeout* seconds."""
    return _connection(settings.REDIS_URL, timeout)


@lru_cache(maxsize=8)
def _connection(url: str, timeout: float) -> redis.Redis:
    # What somebody else wrote into the store may be no text: it is read as a wrong one, and repaired.
    return connect(url, timeout=timeout, encoding_errors="replace")


def keys() -> Keys:
    return Keys(settings.STORE_PREFIX)


@dataclass(frozen=True, slots=True)
class StoreState:
    """What the store says of itself: revision 0 and no id when it is empty, or when it has no proper revision."""

    revision: int
    store_id: str
    fields: int

    @classmethod
    def read(cls, client: redis.Redis) -> Self:
        documents = keys().documents
        with client.pipeline(transaction=True) as pipe:
            pipe.hmget(documents, "revision", "store_id")
            pipe.hlen(documents)
            (revision, store_id), fields = pipe.execute()
        return cls(int(revision) if revision and revision.isdecimal() else 0, store_id or "", fields)

    @property
    def is_empty(self) -> bool:
        return not self.revision or not self.store_id
