"""``make bench``, or ``python -m benchmarks [--quick] [--output FILE]``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import pictures, proxy, report, tasks, threads, web
from benchmarks.figures import MISSED
from benchmarks.measure import Effort, Series, pin
from benchmarks.world import World, world

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    """Measure everything, print it, keep it. Return 1 if a promise was not kept."""
    options = _options(arguments)
    effort = Effort.quick() if options.quick else Effort()
    pinned, start = pin(), time.monotonic()
    with world() as store:
        found = measure(store, effort, pinned, start)
    print(report.plain(found.rows))
    print(f"\n{found.pinned} Noise: {found.noise_told}. {found.seconds:.0f} s.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    if not options.quick:
        (HERE / "RESULTS.md").write_text(found.markdown("make bench"))
        pictures.draw(HERE, found.series["threads"], found.series["tasks"])
    missed = [row.figure for row in found.rows if row.mark == MISSED]
    return 1 if missed and not options.quick else 0


def measure(store: World, effort: Effort, pinned: str, start: float) -> report.Report:
    """Run every comparison."""
    series: dict[str, Series] = {}
    rows, series["threads"] = threads.compare(store, effort)
    more, series["tasks"] = tasks.compare(store, effort)
    rows += more
    leased, leases = threads.leases(store, effort)
    rows += leased
    if leases is not None:
        series["leases"] = leases
    more, series["denials"] = threads.denials(store, effort)
    rows += more
    more, series["web"] = web.compare(store, effort, leased=leases is not None)
    rows += more
    more, passed = proxy.compare(store, effort, leased=leases is not None)
    if passed is not None:
        series["proxy"] = passed
    rows += [*more, *threads.sizes(store)]
    more, series["tokens"] = threads.many_tokens(store, effort)
    rows += more
    info = store.client.info("server")
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    return report.Report(effort, pinned, name, rows, series, _noise(series), time.monotonic() - start)


def _noise(series: Mapping[str, Series]) -> dict[str, float]:
    """Return how far apart the rounds of the plainest candidates lie, as a share of their median."""
    return {
        "one by one": series["threads"].spread("redis-py EVALSHA"),
        "at once": series["tasks"].spread("redis.asyncio EVALSHA", "per_second"),
        "ASGI": series["web"].spread("bare", "per_second"),
    }


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure decisions beside their peers.")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; keeps no results")
    parser.add_argument("--output", type=Path, default=HERE.parent / "var" / "benchmarks.json", help="where JSON goes")
    return parser.parse_args(arguments)
