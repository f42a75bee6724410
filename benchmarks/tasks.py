"""Decisions of many tasks at once in one event loop: throughput, latency, and what each costs the store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter_ns
from typing import Any

from benchmarks import figures
from benchmarks.figures import Row, rate
from benchmarks.measure import SUBJECTS, Effort, Sample, Series, interleave
from benchmarks.peers import MINUTE, AsyncFixedWindow, AsyncPeers, async_storage
from benchmarks.threads import IN_CODE, PATIENCE, USERS
from benchmarks.world import PER_MINUTE, SHARED, World
from enforcement.aio import Limiter

CONCURRENT = 50
CROWD = 300

Call = Callable[[str], Awaitable[Any]]
AsyncRound = Callable[[], Coroutine[Any, Any, Sample]]


def compare(store: World, effort: Effort) -> tuple[list[Row], Series]:
    """Measure fifty tasks that decide without pause, then three hundred checks at once."""
    with asyncio.Runner() as runner:
        peers, limiter = runner.run(_prepare(store))
        candidates = _candidates(store, peers, limiter)
        rounds = {name: _concurrent(store, call, subjects, effort) for name, (call, subjects) in candidates.items()}
        series = interleave({name: _in(runner, measure) for name, measure in rounds.items()}, effort.rounds)
        crowd = runner.run(_crowd(store, limiter, effort))
        if limiter.state != "ok":
            raise AssertionError("The limiter fell back: nothing can be told of this run.")
        runner.run(_close(peers, limiter))
    return [*_rows(series), *crowd], series


async def _prepare(store: World) -> tuple[AsyncPeers, Limiter]:
    peers, limiter = AsyncPeers(store.url), Limiter(store.url, timeout=PATIENCE)
    await peers.prepare()
    await limiter.start()
    return peers, limiter


async def _close(peers: AsyncPeers, limiter: Limiter) -> None:
    await limiter.close()
    await peers.close()


def _candidates(store: World, peers: AsyncPeers, limiter: Limiter) -> dict[str, tuple[Call, Sequence[str]]]:
    return {
        "redis.asyncio EVALSHA": (peers.evalsha, USERS),
        "limits.aio": (peers.one, USERS),
        "throttled-py asyncio GCRA": (peers.gcra, USERS),
        "limits.aio, three calls": (peers.three, USERS),
        "check": (limiter.check, store.tokens("fixed", SUBJECTS)),
        "check three": (limiter.check, store.tokens("two", SUBJECTS, project=SHARED)),
        "hit": (lambda key: limiter.hit(PER_MINUTE, key), USERS),
        "hit three": (lambda key: limiter.hit(IN_CODE, key), USERS),
    }


def _concurrent(store: World, call: Call, subjects: Sequence[str], effort: Effort) -> AsyncRound:
    async def measure() -> Sample:
        spans: list[int] = []
        turns = itertools.cycle(subjects)

        async def work() -> None:
            for _ in range(effort.concurrent_calls // CONCURRENT):
                subject, before = next(turns), perf_counter_ns()
                await call(subject)
                spans.append(perf_counter_ns() - before)

        used, start = store.main_thread_seconds(), perf_counter_ns()
        await asyncio.gather(*(work() for _ in range(CONCURRENT)))
        elapsed = perf_counter_ns() - start
        return Sample.of(spans, elapsed, store_us=(store.main_thread_seconds() - used) * 1e6 / len(spans))

    return measure


def _in(runner: asyncio.Runner, measure: AsyncRound) -> Callable[[], Sample]:
    return lambda: runner.run(measure())


def _rows(series: Series) -> list[Row]:
    def row(figure: str, ours: str, theirs: str, bar: figures.Bar) -> Row:
        told = rate(series.median(ours, "per_second")), rate(series.median(theirs, "per_second"))
        return Row(f"{ours.split()[0]}, {figure}", *told, series.ratio(ours, theirs, "per_second"), bar)

    rows = []
    for call in ("check", "hit"):
        rows += [
            row(f"{CONCURRENT} concurrent, 1 limit: speed over limits.aio", call, "limits.aio", figures.CONCURRENT_ONE),
            row(
                f"{CONCURRENT} concurrent, 3 limits: speed over limits.aio",
                f"{call} three",
                "limits.aio, three calls",
                figures.CONCURRENT_THREE,
            ),
        ]
    for call in ("check", "hit"):
        ratio = series.ratio(call, "redis.asyncio EVALSHA", "store_us")
        told = [figures.us(series.median(name, "store_us")) for name in (call, "redis.asyncio EVALSHA")]
        figure = f"{call}, store CPU a decision at {CONCURRENT} concurrent / redis.asyncio EVALSHA"
        rows.append(Row(figure, *told, ratio, figures.STORE_TIME))
    return rows


async def _crowd(store: World, limiter: Limiter, effort: Effort) -> list[Row]:
    """Ask three hundred times at once, each client as it comes."""
    tokens = store.tokens("fixed", CROWD)
    users = [f"crowd:{i}" for i in range(CROWD)]
    plain = AsyncFixedWindow(async_storage(store.url))
    ours = theirs = 0
    for _ in range(effort.rounds):
        replies = await asyncio.gather(*map(limiter.check, tokens), return_exceptions=True)
        ours += sum(getattr(reply, "source", "") != "store" for reply in replies)
        others = await asyncio.gather(*(plain.hit(MINUTE, user) for user in users), return_exceptions=True)
        theirs += sum(isinstance(reply, BaseException) for reply in others)
    asked = CROWD * effort.rounds
    told = f"{ours} of {asked}", f"{theirs} of {asked}"
    return [Row(f"{CROWD} concurrent checks: errors and fallbacks (limits.aio beside)", *told, ours, figures.NO_ERROR)]
