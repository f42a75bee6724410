"""``make bench``, or ``python -m benchmarks [--quick] [--doors] [--output FILE]``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import pictures, report, tasks, threads, web
from benchmarks.doors import asking, changes, metering, proxy, service
from benchmarks.figures import MISSED, Row
from benchmarks.measure import Effort, Series, pin
from benchmarks.world import World, world

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    """Measure everything, print it, keep it. Return 1 if a promise was not kept."""
    options = _options(arguments)
    effort = Effort.quick() if options.quick else Effort()
    pinned, start = pin(), time.monotonic()
    with world() as store:
        found = measure(store, effort, pinned, start, only_doors=options.doors)
    print(report.plain(found.rows))
    print(f"\n{found.pinned} Noise: {found.noise_told}. {found.seconds:.0f} s.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    if not (options.quick or options.doors):
        (HERE / "RESULTS.md").write_text(found.markdown("make bench", pictures.LINKS))
        pictures.draw(HERE, found.series["threads"], found.series["tasks"])
    missed = [row.figure for row in found.rows if row.mark == MISSED]
    return 1 if missed and not options.quick else 0


def measure(store: World, effort: Effort, pinned: str, start: float, *, only_doors: bool) -> report.Report:
    """Run every comparison, or only those of the doors for other proxies."""
    series: dict[str, Series] = {}
    rows = [] if only_doors else _limiters(store, effort, series)
    rows += _doors(store, effort, series)
    if not only_doors:
        rows += threads.sizes(store)
        more, series["tokens"] = threads.many_tokens(store, effort)
        rows += more
    noise = {} if only_doors else _noise(series)
    return report.Report(effort, pinned, store.name, rows, series, noise, time.monotonic() - start)


def _limiters(store: World, effort: Effort, series: dict[str, Series]) -> list[Row]:
    """Compare decisions in a process with those of other limiters. Add what was measured to *series*."""
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
    return rows + more


def _doors(store: World, effort: Effort, series: dict[str, Series]) -> list[Row]:
    """Compare proxies with what they are without us. Add what was measured to *series*."""
    rows: list[Row] = []
    parts = {"proxy": proxy.compare, "metering": metering.compare, "service": service.compare}
    parts |= {"asking": asking.throughput, "auth_request": asking.latency}
    for name, compare in parts.items():
        more, measured = compare(store, effort)
        rows += more
        if measured is not None:
            series[name] = measured
    return rows + changes.compare(effort)


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
    parser.add_argument("--doors", action="store_true", help="measure only proxies and service; keeps no results")
    parser.add_argument("--output", type=Path, default=HERE.parent / "var" / "benchmarks.json", help="where JSON goes")
    return parser.parse_args(arguments)
