"""Read the counters of a store, with the function that decides. Reading charges nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable

from redis import Redis

from enforcement.plan.binding import BoundLimit
from enforcement.proof.evidence import CounterReading, can_be_proved
from enforcement.proof.history import LedgerCounter
from enforcement.store.client import connect
from enforcement.store_calls.inspection import look


def read_counters(url: str, counters: Iterable[LedgerCounter]) -> list[CounterReading]:
    """
    Read the counters that counting can prove from the store, and return their readings.

    Raises:
        redis.RedisError: The store does not reply.
    """
    with connect(url) as client:
        return [_reading(client, counter) for counter in counters if can_be_proved(counter.limit)]


def _reading(client: Redis, counter: LedgerCounter) -> CounterReading:
    now_us, [(_, used)] = look(client, [BoundLimit(counter.limit, counter.key, "key")], time.time_ns() // 1_000)
    return CounterReading(counter, now_us, used)
