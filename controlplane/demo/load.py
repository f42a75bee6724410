"""Requests to the proxies, and their replies."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

import httpx2

MOST_SECONDS = 10.0
POLL_SECONDS = 0.002
# The statuses of decisions about limits, which usage counts. No limit applies to an unknown or revoked token.
COUNTED = (200, 429)
NEVER = math.inf
Readiness = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoReply:
    """A reply. The status is 0 if there was none within MOST_SECONDS, or if the connection failed."""

    proxy: int
    status: int
    headers: httpx2.Headers
    ms: float


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies to many requests, and the time that all of them took."""

    all: Sequence[DemoReply]
    ms: float

    def having(self, status: int) -> list[DemoReply]:
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
    """HTTP clients of all proxies. ``counted`` has the number of requests that usage should report for each token."""

    urls: Sequence[str]
    counted: Counter[str] = field(default_factory=Counter)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        # More than any step sends at the same time, so that no request waits for a connection.
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
        """Send *each* requests to every proxy, all at the same time, and return the replies."""
        started = time.perf_counter()
        requests = [self._ask(proxy, token) for _ in range(each) for proxy in range(len(self._clients))]
        return Replies(await asyncio.gather(*requests), _ms_since(started))

    async def in_turn(self, token: str, *, each: int) -> Replies:
        """Send *each* requests to every proxy, one at a time for each proxy, and return the replies."""

        async def lane(proxy: int) -> list[DemoReply]:
            return [await self._ask(proxy, token) for _ in range(each)]

        started = time.perf_counter()
        lanes = await asyncio.gather(*map(lane, range(len(self._clients))))
        return Replies([reply for lane_replies in lanes for reply in lane_replies], _ms_since(started))

    async def one_by_one(self, token: str) -> Replies:
        """Send one request to each proxy after the reply of the one before, and return the replies."""
        started = time.perf_counter()
        replies = [await self._ask(proxy, token) for proxy in range(len(self._clients))]
        return Replies(replies, _ms_since(started))

    async def ask_at_once(self, token: str, bodies: Sequence[Mapping[str, object]]) -> Replies:
        """Send each of these questions to every proxy, all at the same time, and return the replies."""
        started = time.perf_counter()
        requests = [self.ask(proxy, token, body) for body in bodies for proxy in range(len(self._clients))]
        return Replies(await asyncio.gather(*requests), _ms_since(started))

    async def ask(self, proxy: int, token: str, body: Mapping[str, object]) -> DemoReply:
        """Send a question for a model to one proxy, read the answer to its end, and return the reply."""
        headers = {"Authorization": f"Bearer {token}", "X-Request-Id": f"{next(self._numbers)}"}
        started = time.perf_counter()
        try:
            answer = await self._clients[proxy].post("/v1/chat/completions", json=body, headers=headers)
        except httpx2.TransportError:
            return DemoReply(proxy, 0, httpx2.Headers(), _ms_since(started))
        return DemoReply(proxy, answer.status_code, answer.headers, _ms_since(started))

    async def when_refused(self, token: str, seconds: float = MOST_SECONDS) -> list[float]:
        """Send requests until each proxy replies with 401, and return for each the instant of that, or NEVER."""

        async def refused(proxy: int) -> bool:
            return (await self._ask(proxy, token)).status == 401

        return await self._when(refused, seconds)

    async def when_ready(self, wanted: Callable[[Readiness], bool], seconds: float = MOST_SECONDS) -> list[float]:
        """
        Poll /readyz of every proxy until *wanted* holds for its content, and return for each the instant of that, or
        NEVER.

        Returns:
            For each proxy the instant of that reply (``time.perf_counter()``), or NEVER after *seconds*.
        """

        async def ready(proxy: int) -> bool:
            return await self._is_ready(proxy, wanted)

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

    async def _is_ready(self, proxy: int, wanted: Callable[[Readiness], bool]) -> bool:
        try:
            answer = await self._clients[proxy].get("/readyz")
        except httpx2.TransportError:
            return False
        return answer.status_code in (200, 503) and wanted(answer.json())

    async def _ask(self, proxy: int, token: str) -> DemoReply:
        started = time.perf_counter()
        try:
            answer = await self._clients[proxy].get("/hello", headers={"Authorization": f"Bearer {token}"})
        except httpx2.TransportError:
            return DemoReply(proxy, 0, httpx2.Headers(), _ms_since(started))
        if answer.status_code in COUNTED:
            self.counted[token] += 1
        return DemoReply(proxy, answer.status_code, answer.headers, _ms_since(started))


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
