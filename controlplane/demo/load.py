"""Requests to the proxies, and what came back."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

import httpx2

MOST_SECONDS = 10.0
POLL_SECONDS = 0.002
# Decisions about limits, which is what usage counts: an unknown or revoked token falls under none.
COUNTED = (200, 429)
NEVER = math.inf
Readiness = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; status 0: there was none in MOST_SECONDS, or the connection broke."""

    proxy: int
    status: int
    headers: httpx2.Headers
    ms: float


@dataclass(frozen=True, slots=True)
class Replies:
    """Many answers."""

    all: Sequence[Reply]
    ms: float

    def having(self, status: int) -> list[Reply]:
        return [reply for reply in self.all if reply.status == status]

    def count(self, status: int) -> int:
        return len(self.having(status))

    def by_proxy(self, status: int) -> list[int]:
        counts = Counter(reply.proxy for reply in self.having(status))
        return [counts[proxy] for proxy in sorted({reply.proxy for reply in self.all})]

    @property
    def median_ms(self) -> float:
        return median(reply.ms for reply in self.all)

    @property
    def slowest_ms(self) -> float:
        return max(reply.ms for reply in self.all)


@dataclass
class ProxyClients:
    """Clients of all proxies. ``counted`` holds, for each token, the requests that usage should report."""

    urls: Sequence[str]
    counted: Counter[str] = field(default_factory=Counter)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        # Bounded by the number of requests a step sends; every one of them gets a connection of its own if need be.
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
        self._clients = [
            await self._stack.enter_async_context(
                httpx2.AsyncClient(base_url=url, timeout=MOST_SECONDS, limits=limits, trust_env=False)
            )
            for url in self.urls
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def at_once(self, token: str, *, each: int) -> Replies:
        """Send *each* requests to every proxy, all at the same time."""
        started = time.perf_counter()
        requests = [self._ask(proxy, token) for _ in range(each) for proxy in range(len(self._clients))]
        return Replies(await asyncio.gather(*requests), _ms_since(started))

    async def in_turn(self, token: str, *, each: int) -> Replies:
        """Send *each* requests to every proxy, each proxy's one after the other."""

        async def lane(proxy: int) -> list[Reply]:
            return [await self._ask(proxy, token) for _ in range(each)]

        started = time.perf_counter()
        lanes = await asyncio.gather(*map(lane, range(len(self._clients))))
        return Replies([reply for lane_replies in lanes for reply in lane_replies], _ms_since(started))

    async def one_by_one(self, token: str) -> Replies:
        """Send one request to every proxy, each after the answer of the one before."""
        started = time.perf_counter()
        replies = [await self._ask(proxy, token) for proxy in range(len(self._clients))]
        return Replies(replies, _ms_since(started))

    async def when_refused(self, token: str, seconds: float = MOST_SECONDS) -> list[float]:
        """Ask every proxy until it answers 401; see :meth:`when_ready`."""

        async def refused(proxy: int) -> bool:
            return (await self._ask(proxy, token)).status == 401

        return await self._when(refused, seconds)

    async def when_ready(self, wanted: Callable[[Readiness], bool], seconds: float = MOST_SECONDS) -> list[float]:
        """Ask every proxy's /readyz until it says what is *wanted*; return the instants (perf_counter), or NEVER."""

        async def ready(proxy: int) -> bool:
            return await self._says(proxy, wanted)

        return await self._when(ready, seconds)

    async def _when(self, holds: Callable[[int], Awaitable[bool]], seconds: float) -> list[float]:
        async def poll(proxy: int) -> float:
            try:
                async with asyncio.timeout(seconds):
                    while not await holds(proxy):
                        await asyncio.sleep(POLL_SECONDS)
            except TimeoutError:
                return NEVER
            return time.perf_counter()

        return await asyncio.gather(*map(poll, range(len(self._clients))))

    async def _says(self, proxy: int, wanted: Callable[[Readiness], bool]) -> bool:
        try:
            answer = await self._clients[proxy].get("/readyz")
        except httpx2.TransportError:
            return False
        return answer.status_code in (200, 503) and wanted(answer.json())

    async def _ask(self, proxy: int, token: str) -> Reply:
        started = time.perf_counter()
        try:
            answer = await self._clients[proxy].get("/hello", headers={"Authorization": f"Bearer {token}"})
        except httpx2.TransportError:
            return Reply(proxy, 0, httpx2.Headers(), _ms_since(started))
        if answer.status_code in COUNTED:
            self.counted[token] += 1
        return Reply(proxy, answer.status_code, answer.headers, _ms_since(started))


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
