"""The shapes of calls that are awaited: checks one at a time and fifty at once, and requests to an ASGI door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from benchmarks.compare.shapes import PATIENCE, SetUp, Site, Timed
from enforcement.aio import Limiter
from enforcement.doors.asgi import LimitMiddleware

CONCURRENT = 50
SCOPE = {"type": "http", "method": "GET", "path": "/v1/things", "client": ("127.0.0.1", 40_000)}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"ok"}

_runner = asyncio.Runner()


@contextmanager
def loop() -> Iterator[None]:
    """Keep one event loop while a block lasts, in which all of this runs."""
    with _runner:
        yield


class TimedAwaits(Timed):
    """
    A coroutine function, awaited one at a time. The arguments are those of :class:`Timed`.

    Attributes:
        clock: Returns nanoseconds.
    """

    clock = staticmethod(perf_counter_ns)

    def run(self, calls: int) -> int:
        """Run calls and return the nanoseconds that they took together."""
        return _runner.run(self._awaiting([next(self._turns) for _ in range(calls)]))

    async def _awaiting(self, subjects: Sequence[Any]) -> int:
        call, clock = self._call, self.clock
        start = clock()
        for subject in subjects:
            await call(subject)
        return clock() - start

    def decision(self) -> Any:
        """Return the decision of one call that is not timed."""
        return _runner.run(self._call(next(self._turns)))


class TimedTogether(TimedAwaits):
    """The same, awaited by fifty tasks that call without pause."""

    step = CONCURRENT

    async def _awaiting(self, subjects: Sequence[Any]) -> int:
        call = self._call

        async def work(mine: Sequence[Any]) -> None:
            for subject in mine:
                await call(subject)

        shares = [subjects[i::CONCURRENT] for i in range(CONCURRENT)]
        start = perf_counter_ns()
        await asyncio.gather(*map(work, shares))
        return perf_counter_ns() - start


@contextmanager
def started(site: Site) -> Iterator[Limiter]:
    """Run a limiter of a site while a block lasts."""
    limiter = Limiter(site.url, prefix=site.prefix, timeout=PATIENCE)
    _runner.run(limiter.start())
    try:
        yield limiter
    finally:
        _runner.run(limiter.close())


def _checking(kind: type[TimedAwaits]) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        tokens = site.tokens("fixed")
        with started(site) as limiter:
            yield kind(limiter.check, tokens, lambda: limiter.state)

    return set_up


def _door(policy: str, source: str) -> SetUp:
    @contextmanager
    def set_up(site: Site) -> Iterator[Timed]:
        fields = [(b"host", b"localhost"), (b"authorization", f"Bearer {site.tokens(policy, 1)[0]}".encode())]
        with started(site) as limiter:
            call = _requesting(LimitMiddleware(_application, limiter))
            yield TimedAwaits(call, [{**SCOPE, "headers": fields}], lambda: limiter.state, source=source)

    return set_up


def _requesting(app: Callable[[Any, Any, Any], Awaitable[None]]) -> Callable[[Any], Awaitable[Any]]:
    """Return what calls an application as a server does, and gives back the decision."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def call(scope: dict[str, Any]) -> Any:
        scope = dict(scope)
        await app(scope, receive, send)
        return scope["sluicegate.decision"]

    return call


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send(BODY)


ASYNC_SHAPES: dict[str, SetUp] = {
    "aio-check": _checking(TimedAwaits),
    "aio-check-50": _checking(TimedTogether),
    "asgi-strict": _door("fixed", "store"),
    "asgi-leased": _door("leased", "lease"),
}
