"""The seventh proof: what a decision costs, against a bare round trip to the same store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from controlplane.demo.stage import Stage
from controlplane.demo.story import new_token
from controlplane.demo.telling import Teller
from enforcement import Limiter
from enforcement.store.client import connect

ROUNDS = 60
CALLS_PER_ROUND = 50
POLICY = "demo-overhead"
# So far off that no request of the measurement is denied; a denial that is remembered costs no round trip.
QUOTA = 1_000_000_000
# What costs more than this is a broken decision and not a slow machine: both are measured on the same one.
MOST_TIMES = 3.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Microseconds of a decision and of a bare round trip (medians), and how often a decision called the store."""

    decision_us: float
    bare_us: float
    calls: float


async def weigh(stage: Stage, teller: Teller) -> None:
    """Measure decisions and pings in turn, from a process of their own making."""
    teller.chapter("What a decision costs")
    limit = {"name": "per-minute", "algorithm": "fixed_window", "quota": QUOTA, "window_seconds": 60}
    await stage.call("POST", "policies", {"slug": POLICY, "name": "Demo overhead", "limits": [limit]})
    token = await new_token(stage, "overhead", POLICY)
    found = await asyncio.to_thread(measure, stage.stack.redis_url, token.secret)
    teller.say(f"{ROUNDS * CALLS_PER_ROUND} decisions and as many bare PINGs, in turn, one at a time:")
    teller.check(
        found.decision_us < MOST_TIMES * found.bare_us,
        f"a decision takes {found.decision_us:.0f} µs, a bare round trip (redis-py) {found.bare_us:.0f} µs: "
        f"{found.decision_us - found.bare_us:+.0f} µs",
    )
    teller.check(found.calls < 1.01, f"{found.calls:.2f} calls of the store a decision")


def measure(url: str, token: str) -> Overhead:
    """Time both in interleaved rounds, so that whatever else the machine does falls on both alike."""
    decisions: list[float] = []
    pings: list[float] = []
    with Limiter(url, instance="demo-overhead") as limiter, connect(url) as client:
        limiter.check(token)
        client.ping()
        before = _calls(client)
        for _ in range(ROUNDS):
            decisions += _timed(lambda: limiter.check(token))
            pings += _timed(client.ping)
        calls = (_calls(client) - before) / len(decisions)
    return Overhead(median(decisions), median(pings), calls)


def _timed(work: Callable[[], object]) -> list[float]:
    spans = []
    for _ in range(CALLS_PER_ROUND):
        started = time.perf_counter_ns()
        work()
        spans.append((time.perf_counter_ns() - started) / 1000)
    return spans


def _calls(client: object) -> int:
    """How many functions the store has run; only decisions call functions here."""
    return int(client.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"])  # type: ignore[attr-defined]
