"""The benchmarks run, on any machine; how fast anything is, only a quiet machine can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import KNOWN_DENIAL, LEASED, Bar
from tests.apart import program, python_of
from tests.proxies.running import installed
from tests.repository import ROOT


@pytest.fixture(scope="module")
def programs() -> None:
    """Require what the figures of proxies need. Where it is missing, their rows have no figures."""
    installed("nginx", "nginx")
    program("envoy", "envoy")
    python_of("protobuf")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """Give what a quick run printed and wrote."""
    output: Path = tmp_path_factory.mktemp("bench") / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())


def test_every_row_has_figures(programs: None, run: tuple[str, dict]) -> None:
    """No comparison is left out in silence."""
    printed, found = run

    assert [row["figure"] for row in found["rows"] if row["ratio"] is None] == []
    assert [row["figure"] for row in found["rows"] if row["figure"] not in printed] == []


def test_every_promise_has_a_row(run: tuple[str, dict]) -> None:
    """What is promised about speed is measured: two dozen bounds, some of them in several rows."""
    bars = {json.dumps(row["bar"]) for row in run[1]["rows"] if row["bar"]}

    assert len(bars) == 24


def test_every_candidate_has_a_latency_and_a_rate(run: tuple[str, dict]) -> None:
    """Medians and throughput of ours and theirs are kept."""
    figures = [values for series in run[1]["series"].values() for values in series.values()]

    assert all(0 < values["p50"] <= values["p99"] and values["per_second"] > 0 for values in figures)


def test_results_say_what_was_measured_with_what(run: tuple[str, dict]) -> None:
    """A figure without its machine and versions is worth nothing."""
    assert {"Python", "store", "limits", "throttled-py", "redis"} <= set(run[1]["versions"])
    assert run[1]["machine"]


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
