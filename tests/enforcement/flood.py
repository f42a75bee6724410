"""A process that asks for one value of an attribute after the other, each of them once, and tells what that takes."""

import argparse
import asyncio
import json
from pathlib import Path

from enforcement import aio
from enforcement.failover import journal, latest_replies, partition_values, shares

# What a process keeps of an outage at most, which is 50,000 of each.
BOUNDS = {
    journal: "MAX_CHARGES",
    latest_replies: "MAX_KNOWN",
    partition_values: "MAX_VALUES",
    shares: "MAX_COUNTERS",
}
TOGETHER = 100
TOLD_EVERY = 1_000


def resident_mb() -> float:
    """Return the memory of this process, in MB, as the kernel counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096 / 1_000_000


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("secret")
    parser.add_argument("values", type=int)
    parser.add_argument("--away", action="store_true", help="as if the store were away, and stayed so")
    parser.add_argument("--most", type=int, default=50_000, help="of what is kept of an outage")
    options = parser.parse_args()
    for module, name in BOUNDS.items():
        setattr(module, name, options.most)
    async with aio.Limiter(options.url, timeout=5.0) as limiter:
        await limiter.check(options.secret)
        engine = limiter._engine
        if options.away:
            engine.health.recovered = lambda: False
            engine.health.breaker.trip("flood")
        for start in range(0, options.values, TOGETHER):
            if start % TOLD_EVERY == 0:
                print(json.dumps({"asked": start, "mb": resident_mb()}), flush=True)
            names = [{"user": f"user-{number}"} for number in range(start, start + TOGETHER)]
            decisions = await asyncio.gather(*(limiter.check(options.secret, attributes=name) for name in names))
        kept = {"plans": len(engine.planner.plan_cache), "counters": len(engine.fallback)}
        last = {"source": decisions[-1].source, "overflow": decisions[-1].limits[0].overflow}
        print(json.dumps({"asked": options.values, "mb": resident_mb(), **kept, **last}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
