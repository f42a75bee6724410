"""``make bench``, or ``python -m benchmarks [--quick] [--doors] [--output FILE]``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import pictures, pipelines, report, tasks, threads, web
from benchmarks.doors import asking, changes, metering, proxy, service
from benchmarks.figures import MISSED, QUIET, Group, Row
from benchmarks.measure import Effort, Series, pin
from benchmarks.world import World, world

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    """Measure everything, print it, keep it. Return 1 if a promise was not kept."""
    options = _options(arguments)
    effort = Effort.quick() if options.quick else Effort()
    pinned, start = pin(), time.monotonic()
    with world() as store:
        groups = [steady(part, store, effort) for part in (DOORS if options.doors else ALL)]
        found = report.Report(effort, pinned, store.name, groups, time.monotonic() - start)
    print(report.plain(found.rows))
    print(f"\n{found.pinned} Noise: {found.noise_told}. {found.seconds:.0f} s.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    if not (options.quick or options.doors):
        (HERE / "RESULTS.md").write_text(found.markdown("make bench", pictures.LINKS))
        pictures.draw(HERE, found.series["threads"], found.series["tasks"])
    missed = [row.figure for row in found.rows if row.mark == MISSED]
    return 1 if missed and not options.quick else 0


@dataclass(frozen=True, slots=True)
class Part:
    """
    What is measured together.

    Args:
        measures: Sentences that say what its figures are.
        compare: What measures it.
        plainest: The candidate that has least of us in it, and the figure by which it shows how noisy the machine was.
            None: there is none.
    """

    name: str
    measures: str
    compare: Callable[[World, Effort], tuple[list[Row], Series | None]]
    plainest: tuple[str, str] | None = None

    def measure(self, store: World, effort: Effort) -> Group:
        """Measure it once."""
        rows, series = self.compare(store, effort)
        noise = series.spread(*self.plainest) if series is not None and self.plainest else None
        return Group.of(self.name, self.measures, rows, series, noise)


def steady(part: Part, store: World, effort: Effort) -> Group:
    """Measure a part, and again while it is noisy. Return what was found when it was quietest."""
    found = part.measure(store, effort)
    for times in range(2, effort.times + 1):
        if found.noise is None or found.noise <= QUIET:
            break
        again = part.measure(store, effort)
        quieter = min(found, again, key=lambda group: group.noise or 0.0)
        found = replace(quieter, times=times)
    return found


LIMITERS = (
    Part(
        "threads",
        "One thread makes one call after the other and waits for each: what a caller waits for. The store has one "
        "command at a time.",
        threads.compare,
        ("redis-py EVALSHA", "p50"),
    ),
    Part(
        "tasks",
        "50 tasks in one event loop call without a pause. Ours write what waits at the same time in one go over one "
        "connection; the others have a connection for each task. So the store's time is less for ours also because it "
        "reads less often, which equal pipelines leave out.",
        tasks.compare,
        ("redis.asyncio EVALSHA", "per_second"),
    ),
    Part(
        "pipelines",
        "The processor time of the store for a command, without a client library: equal pipelines are 50 commands in "
        "one write, of ours and of the script. Beside them, the same 50 decisions as threads send them, each on a "
        "connection of its own, and one after the other.",
        pipelines.compare,
        (pipelines.EVALSHA, "store_us"),
    ),
    Part(
        "leases",
        "One thread decides from permits on lease, in batches of 100 calls. The calls that renew the lease are in it.",
        threads.leases,
        ("limits memory", "per_second"),
    ),
    Part(
        "denials",
        "One thread is denied by what it remembers. The calls that renew what it knows are in it.",
        threads.denials,
        ("limits denial", "p50"),
    ),
    Part(
        "web",
        "An ASGI application under one uvicorn worker, asked over 32 connections. Judged by the processor time of the "
        "server, as the client has the same core.",
        lambda store, effort: web.compare(store, effort, leased=True),
        ("bare", "cpu"),
    ),
)
DOORS = (
    Part(
        "proxy",
        "The proxy has a core of its own. 32 connections. Judged by its processor time, as the client and what is "
        "behind the proxy share the other core, and are full before a bare upstream is.",
        proxy.compare,
        ("bare", "cpu"),
    ),
    Part("metering", "Proxies that read requests and answers of models, on a core of their own.", metering.compare),
    Part(
        "service",
        "The decision service has a core of its own. 32 connections, or 32 calls on one connection of gRPC.",
        service.compare,
        ("h2corn, no limit", "cpu"),
    ),
    Part(
        "asking", "Other proxies that ask the service, which has a core of its own. 32 connections.", asking.throughput
    ),
    Part(
        "auth_request",
        "One request after the other, and everything on one core.",
        asking.latency,
        (asking.FCALL, "p50"),
    ),
    Part(
        "changes",
        "From before a publication to the first answer that obeys it.",
        lambda _, effort: (changes.compare(effort), None),
    ),
)
STORES = (
    Part(
        "sizes", "Bytes of the store for a counter, by `MEMORY USAGE`.", lambda store, _: (threads.sizes(store), None)
    ),
    Part(
        "tokens",
        "One thread, one call after the other, in a store with few tokens and in one with many.",
        threads.many_tokens,
        ("EVALSHA of 100", "p50"),
    ),
)
ALL = (*LIMITERS, *DOORS, *STORES)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure decisions beside their peers.")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; keeps no results")
    parser.add_argument("--doors", action="store_true", help="measure only proxies and service; keeps no results")
    parser.add_argument("--output", type=Path, default=HERE.parent / "var" / "benchmarks.json", help="where JSON goes")
    return parser.parse_args(arguments)
