"""Step seven of the demo, which compares the time of a decision with a round trip to the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import redis

from controlplane.demo.environment import DemoEnvironment
from controlplane.demo.reporter import Reporter
from controlplane.demo.steps import new_token
from enforcement import Limiter
from enforcement.store.client import connect

ROUNDS = 60
CALLS_PER_ROUND = 50
POLICY = "demo-overhead"
# So large that no request is denied, because a remembered denial needs no round trip.
QUOTA = 1_000_000_000
# Both times are measured on the same machine, so a larger ratio means a defect and not a slow machine.
MOST_TIMES = 3.0


@dataclass(frozen=True, slots=True)
class Overhead:
    """The median microseconds of a decision and of a round trip, and the calls to the store for each decision."""

    decision_us: float
    bare_us: float
    calls: float


async def check_overhead(demo: DemoEnvironment, reporter: Reporter) -> None:
    """Measure decisions and round trips from this process, and print a check of their ratio."""
    reporter.step("The time of a decision")
    limit = {"name": "per-minute", "algorithm": "fixed_window", "quota": QUOTA, "window_seconds": 60}
    await demo.call("POST", "policies", {"slug": POLICY, "name": "Demo overhead", "limits": [limit]})
    token = await new_token(demo, "overhead", POLICY)
    found = await asyncio.to_thread(measure, demo.stack.redis_url, token.secret)
    reporter.note(f"{ROUNDS * CALLS_PER_ROUND} decisions and as many PINGs, in alternating rounds, one at a time:")
    reporter.check(
        found.decision_us < MOST_TIMES * found.bare_us,
        f"a decision takes {found.decision_us:.0f} µs, a round trip with redis-py {found.bare_us:.0f} µs, "
        f"difference {found.decision_us - found.bare_us:+.0f} µs",
    )
    reporter.check(found.calls < 1.01, f"{found.calls:.2f} calls to the store for each decision")


def measure(url: str, token: str) -> Overhead:
    """
    Return the median microseconds of a decision and of a PING, measured in turns, and the store calls of a decision.
    """
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


def _calls(client: redis.Redis) -> int:
    """Return how many functions the store has run. Here only decisions call functions."""
    return int(client.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"])
