"""The table that a person reads, and the files that are kept of a run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import enforcement
from benchmarks.figures import QUIET, Group, Row
from benchmarks.measure import Effort, Series
from benchmarks.peers import VERSIONS

HEAD = ("figure", "ours", "theirs", "ratio", "must", "aim", "")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a run found."""

    effort: Effort
    pinned: str
    store: str
    groups: Sequence[Group]
    seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what was measured beside those that every run names."""

    @property
    def rows(self) -> list[Row]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def series(self) -> dict[str, Series]:
        """What was measured, by the name of the group."""
        return {group.name: group.series for group in self.groups if group.series is not None}

    @property
    def noise_told(self) -> str:
        """The noise of each group, readable."""
        noises = [f"{group.name} {group.noise:.0%}" for group in self.groups if group.noise is not None]
        return ", ".join(noises) or "not measured"

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "pinned": self.pinned,
            "noise": {group.name: round(group.noise, 3) for group in self.groups if group.noise is not None},
            "times": {group.name: group.times for group in self.groups},
            "seconds": round(self.seconds, 1),
            "machine": machine(),
            "versions": {**versions(self.store), **self.versions},
            "rows": [row.to_json() for row in self.rows],
            "series": {name: series.to_json() for name, series in self.series.items()},
        }

    def markdown(self, command: str, pictures: Sequence[str] = ()) -> str:
        """Return the page that is kept in the repository, with links to pictures."""
        named = ", ".join(f"{name} {number}" for name, number in {**versions(self.store), **self.versions}.items())
        facts = [
            f"- Command: `{command}`, {self.seconds:.0f} s, {time.strftime('%Y-%m-%d', time.gmtime())}.",
            f"- Machine: {machine()}.",
            f"- Versions: {named}.",
            f"- {self.pinned} {self.effort.rounds} rounds, candidates in turn, medians.",
            "- Noise is how far apart the rounds of the plainest call of a group lie, (most - least) / median. "
            f"A group above {QUIET:.0%} was measured again, and has no verdict if it stayed noisy.",
        ]
        parts = ["# Results", "\n".join(facts)]
        for group in self.groups:
            parts += [f"## {group.name.capitalize()}", f"{group.measures} {group.noise_told}".strip()]
            parts.append(markdown_table(HEAD, cells(group.rows)))
        parts += [*pictures, "## Every candidate"]
        parts += ["Microseconds of one call, and calls a second.", markdown_table(*self._everything())]
        return "\n\n".join(parts) + "\n"

    def _everything(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        rows: list[Sequence[str]] = []
        for name, series in self.series.items():
            for candidate, values in series.to_json().items():
                shown = [f"{values[key]:,.{0 if key == 'per_second' else 2}f}" for key in ("p50", "p99", "per_second")]
                rows.append((name, candidate, *shown))
        return ("where", "candidate", "p50", "p99", "a second"), rows


def cells(rows: Sequence[Row]) -> list[Sequence[str]]:
    """Return the rows as texts, in the order of the head."""
    return [
        (
            row.figure,
            row.ours,
            row.theirs,
            row.told,
            row.bar.told(row.bar.must) if row.bar else "",
            row.bar.told(row.bar.aim) if row.bar else "",
            row.mark,
        )
        for row in rows
    ]


def plain(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    table = [HEAD, *cells(rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
    lines = []
    for line in table:
        first = line[0].ljust(widths[0])
        lines.append(
            "  ".join([first, *(cell.rjust(widths[i + 1]) for i, cell in enumerate(line[1:6])), line[6]]).rstrip()
        )
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    table = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def machine() -> str:
    """Return processor, cores, system."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), ""
        )
    return f"{os.cpu_count()} x {model or platform.machine()}, {platform.system()} {platform.release()}"


def versions(store: str) -> dict[str, str]:
    """Return what was measured with what."""
    named = {"Python": platform.python_version(), "store": store, "sluicegate": enforcement.__version__}
    return named | {name: version(name) for name in VERSIONS}
