"""
A lock in the store, for work that two processes need not do at once.

It saves work and is no proof: a holder that was suspended past the time to live may wake up beside the next one. So
whoever holds it lets a row or a key settle the race as well; the fencing token tells which holder is the later one.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from controlplane.publishing.store import keys
from enforcement.store.client import STORE_ERRORS

POLL_SECONDS = 0.005

# Take the lock and the next fencing token in one step: taken apart, an earlier holder could draw the later token.
# KEYS: lock, fence. ARGV: owner, time to live in milliseconds. Returns the token, 0 when another holds the lock.
ACQUIRE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end
return 0
"""
# KEYS: lock. ARGV: owner. A lock that ran out may be another's by now: it is not touched.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


@contextmanager
def hold(client: redis.Redis, name: str, *, ttl_ms: int, wait_ms: int = 0) -> Iterator[int | None]:
    """
    Hold the lock *name* for the block and yield its fencing token, or None: another has it.

    Args:
        ttl_ms: When a holder that died loses the lock.
        wait_ms: How long to ask again for a lock that another holds.
    Raises:
        One of STORE_ERRORS: The store is away. None is raised when only the release fails.
    """
    owner = secrets.token_hex(16)
    fence = _acquire(client, name, owner, ttl_ms, time.monotonic() + wait_ms / 1000)
    try:
        yield fence
    finally:
        if fence is not None:
            with suppress(*STORE_ERRORS):
                client.eval(RELEASE, 1, keys().lock(name), owner)


def _acquire(client: redis.Redis, name: str, owner: str, ttl_ms: int, deadline: float) -> int | None:
    while True:
        fence = client.eval(ACQUIRE, 2, keys().lock(name), keys().fence(name), owner, ttl_ms)
        if fence:
            return int(fence)
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)
