"""What is measured in fresh processes: imports, memory of a limiter, bytes of a counter."""

from __future__ import annotations

import compileall
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare.names import COUNTERS, IDLE, IMPORTS
from benchmarks.compare.ratios import Row, counted, paired
from enforcement.embedded import ValkeyServer

PROBES = Path(__file__).with_name("probes.py")
COUNTERS_MADE = 10_000
IDLE_PROCESSES = 5

Trees = dict[str, Path]


@dataclass(frozen=True, slots=True)
class Footprint:
    """
    What fresh processes found.

    Attributes:
        modules: What an import loads, by what is imported and by tree.
    """

    rows: list[Row] = field(default_factory=list)
    modules: dict[str, dict[str, Sequence[str]]] = field(default_factory=dict)


def measure(trees: Trees, names: Sequence[str], pairs: int, progress: Callable[[str], None]) -> Footprint:
    """Measure what *names* has of :data:`~benchmarks.compare.names.FOOTPRINTS`."""
    found = Footprint()
    if IMPORTS in names:
        progress("imports in fresh interpreters")
        _imports(trees, pairs, found)
    if COUNTERS in names:
        progress("bytes of a counter")
        found.rows.extend(_counters(trees, COUNTERS_MADE if pairs > 2 else 500))
    if IDLE in names:
        progress("memory of an idle limiter")
        found.rows.append(_idle(trees, IDLE_PROCESSES if pairs > 2 else 1))
    return found


def _imports(trees: Trees, pairs: int, found: Footprint) -> None:
    for folder in trees.values():
        # As an installer does. An import does it too, but not where the environment forbids Python to write bytecode.
        compileall.compile_dir(folder / "enforcement", quiet=1)
    runs: dict[str, list[Any]] = {tree: [] for tree in trees}
    for number in range(pairs):
        for tree in ("old", "new") if number % 2 == 0 else ("new", "old"):
            runs[tree].append(_probe("imports", trees[tree]))
    for what in runs["old"][0]:
        times = {tree: [run[what]["ms"] for run in rounds] for tree, rounds in runs.items()}
        found.rows.append(paired(f"import {what}", "ms", times["old"], times["new"]))
        found.modules[what] = {tree: rounds[0][what]["modules"] for tree, rounds in runs.items()}


def _counters(trees: Trees, count: int) -> list[Row]:
    found = {}
    for tree, folder in trees.items():
        # A fresh server each: how much its tables grow by depends on how many keys there were before.
        with ValkeyServer(persistent=False) as server:
            found[tree] = _probe("counters", folder, server.url, str(count))
    return [counted(f"counter, {name}", "bytes", found["old"][name], found["new"][name]) for name in found["old"]]


def _idle(trees: Trees, processes: int) -> Row:
    with ValkeyServer(persistent=False) as server:
        held = {
            tree: statistics.median(_probe("idle", folder, server.url)["bytes"] for _ in range(processes))
            for tree, folder in trees.items()
        }
    return counted("idle limiter", "KiB", held["old"] / 1_024, held["new"] / 1_024)


def _probe(probe: str, tree: Path, *arguments: str) -> Any:
    # -P: without the folder of the script on the path.
    command = [sys.executable, "-P", str(PROBES), probe, str(tree), *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The probe {probe} of {tree} failed:\n{done.stderr}")
    return json.loads(done.stdout)
