"""The benchmarks run, on any machine; how fast anything is, only a quiet machine can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bench import ALL, Part, steady
from benchmarks.figures import KNOWN_DENIAL, LEASED, NO_ERROR, Bar, Row
from benchmarks.measure import Effort, Sample, Series
from benchmarks.report import Report
from tests.apart import program, python_of
from tests.proxies.running import installed
from tests.repository import ROOT
from tests.scale import scale

SHORT = """
import json

from benchmarks import pipelines, tasks, threads
from benchmarks.doors.asking import latency
from benchmarks.measure import Effort
from benchmarks.world import world

with world() as store:
    for compare in (threads.compare, threads.leases, threads.denials, tasks.compare, pipelines.compare, latency):
        rows, series = compare(store, Effort.quick())
        print(json.dumps([len(rows), [row.figure for row in rows if row.ratio is None], series.to_json()]))
"""


def test_a_comparison_has_figures() -> None:
    """In every run, those that take seconds: no row is left out, and ours and theirs have latency and rate."""
    done = subprocess.run([sys.executable, "-c", SHORT], cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [absent for rows, absent, _ in found if rows] == [[], [], [], [], [], []]
    assert all(values["p50"] > 0 and values["per_second"] > 0 for *_, series in found for values in series.values())


@pytest.mark.proof
@pytest.mark.skipif(not scale(False, True), reason="takes a minute: make proof")
def test_every_promise_is_measured(tmp_path: Path) -> None:
    """
    The whole quick run, with nginx, Envoy and the decision service.

    No comparison is left out in silence. What is promised about speed is measured: two dozen bounds, some of them in
    several rows. Medians and throughput of ours and theirs are kept, with the machine and the versions.
    """
    installed("nginx", "nginx")
    program("envoy", "envoy")
    python_of("protobuf")
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert [row["figure"] for row in found["rows"] if row["ratio"] is None or row["figure"] not in done.stdout] == []
    assert len({json.dumps(row["bar"]) for row in found["rows"] if row["bar"]}) >= 23
    figures = [values for series in found["series"].values() for values in series.values()]
    assert all(0 < values["p50"] <= values["p99"] and values["per_second"] > 0 for values in figures)
    assert {"Python", "store", "limits", "throttled-py", "redis"} <= set(found["versions"])
    assert found["machine"]


@pytest.mark.parametrize(
    ("bar", "ratio", "mark"),
    [
        (Bar(0.95, 0.70), 0.70, "aim"),
        (Bar(0.95, 0.70), 0.71, "held"),
        (Bar(0.95, 0.70), 0.96, "MISSED"),
        (LEASED, 3.0, "aim"),
        (LEASED, 1.5, "held"),
        (LEASED, 1.4, "MISSED"),
        (KNOWN_DENIAL, 1 / 40, "held"),
        (KNOWN_DENIAL, 1 / 39, "MISSED"),
    ],
)
def test_a_ratio_is_judged_by_its_bounds(bar: Bar, ratio: float, mark: str) -> None:
    """Where more is better, less is missed; elsewhere more is."""
    assert bar.judge(ratio) == mark


def part(*spreads: float) -> Part:
    """Return a part whose rounds lie so far apart, one time after the other, and which misses its promise."""
    times = iter(spreads)

    def compare(store: object, effort: Effort) -> tuple[list[Row], Series]:
        p50s = (10.0, 10.0, 10.0 + 10.0 * next(times))
        rows = [Row("ours / theirs", "9 us", "3 us", 3.0, Bar(1, 0.5)), Row("errors", "0", "9", 0.0, NO_ERROR)]
        return rows, Series({"plain": [Sample(p, p, 1) for p in p50s]})

    return Part("part", "What it measures.", compare, ("plain", "p50"))


@pytest.mark.parametrize(
    ("spreads", "times", "noise", "mark"),
    [
        ((0.2,), 1, 0.2, "MISSED"),
        ((0.9, 0.1), 2, 0.1, "MISSED"),
        ((0.9, 0.3, 0.4), 3, 0.3, "no verdict"),
    ],
)
def test_what_is_noisy_is_measured_again_or_has_no_verdict(spreads, times, noise, mark) -> None:
    """The page says how noisy a group was, how often it was measured, and what its figures are."""
    group = steady(part(*spreads), None, Effort())

    page = Report(Effort(), "", "valkey", [group], 1.0).markdown("make bench")
    assert (group.times, group.noise, [row.mark for row in group.rows]) == (times, pytest.approx(noise), [mark, "aim"])
    assert f"What it measures. Noise {noise:.0%}" in page
    assert ("no verdict." in page) == (mark == "no verdict")


def test_each_group_says_what_it_measures() -> None:
    """In whole sentences, and under a name of its own."""
    assert all(part.measures.endswith(".") for part in ALL)
    assert len({part.name for part in ALL}) == len(ALL)
