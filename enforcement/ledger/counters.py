"""What the store counted, read by the function that decides, which charges nothing this time."""

from __future__ import annotations

import time
from collections.abc import Iterable

from redis import Redis

from enforcement.control.inspection import look
from enforcement.ledger.claims import Reading, can_be_judged
from enforcement.ledger.records import Counter
from enforcement.plan.plan import BoundLimit
from enforcement.store.client import connect


def read_counters(url: str, counters: Iterable[Counter]) -> list[Reading]:
    """
    Read the counters that ledgers name, as far as anything can be proved of them.

    Raises:
        redis.RedisError: The store does not answer.
    """
    with connect(url) as client:
        return [_reading(client, counter) for counter in counters if can_be_judged(counter.limit)]


def _reading(client: Redis, counter: Counter) -> Reading:
    now_us, [(_, used)] = look(client, [BoundLimit(counter.limit, counter.key, "key")], time.time_ns() // 1_000)
    return Reading(counter, now_us, used)


__all__ = ["read_counters"]
