"""
A lock in the store, for work that two processes should not do at the same time.

The lock saves work but guarantees nothing, because a holder that is suspended for longer than the time to live may wake
up while the next holder works. So each holder also relies on a row or a key that only one of them can write. The
fencing token shows which holder is the later one.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from controlplane.core.store import keys
from enforcement.store.client import STORE_ERRORS

POLL_SECONDS = 0.005

# Take the lock and the next fencing token in one step. In two steps, an earlier holder could get the later token.
# KEYS: lock, fence. ARGV: owner, time to live in milliseconds. Returns the token, 0 if another process has the lock.
ACQUIRE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end
return 0
"""
# KEYS: lock. ARGV: owner. If the lock has expired, another process may have it, so only the owner deletes it.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
# KEYS: lock. ARGV: time to live in milliseconds.
PROLONG = """
local owner = redis.call('GET', KEYS[1])
if owner then redis.call('SET', KEYS[1], owner, 'PX', ARGV[1]) end
return owner and 1 or 0
"""


@contextmanager
def hold(client: redis.Redis, name: str, *, ttl_ms: int, wait_ms: int = 0) -> Iterator[int | None]:
    """
    Hold the lock *name* during the block and yield its fencing token, or None if another process has the lock.

    Args:
        ttl_ms: The time after which a holder that died loses the lock.
        wait_ms: How long to retry while another process has the lock.
    Raises:
        One of STORE_ERRORS: The store is unavailable. Nothing is raised if only the release fails.
    """
    owner = secrets.token_hex(16)
    fence = _acquire(client, name, owner, ttl_ms, time.monotonic() + wait_ms / 1000)
    try:
        yield fence
    finally:
        if fence is not None:
            with suppress(*STORE_ERRORS):
                client.eval(RELEASE, 1, keys().lock(name), owner)


def prolong(client: redis.Redis, name: str, ttl_ms: int) -> None:
    """
    Give the holder of a lock *ttl_ms* more from now on, whoever it is. Raises one of STORE_ERRORS.

    A process that has lost the lock meanwhile prolongs that of the next holder, which costs others only time.
    """
    client.eval(PROLONG, 1, keys().lock(name), ttl_ms)


def _acquire(client: redis.Redis, name: str, owner: str, ttl_ms: int, deadline: float) -> int | None:
    while True:
        fence = client.eval(ACQUIRE, 2, keys().lock(name), keys().fence(name), owner, ttl_ms)
        if fence:
            return int(fence)
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)
