"""
How figures are taken: pinned to one core, candidates in turn, medians over rounds.

Machines speed up and slow down while one measures. So every round visits each candidate once, a ratio is taken inside
its round, and the median of those ratios is told.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter_ns
from typing import Any

SUBJECTS = 64
"""Keys, or tokens, that take turns."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured; a smoke test is content with less."""

    rounds: int = 7
    calls: int = 1_500
    concurrent_calls: int = 10_000
    local_calls: int = 20_000
    http_seconds: float = 1.0
    door_seconds: float = 0.25
    changes: int = 50
    clients: int = 200
    tokens: int = 1_000_000
    times: int = 3
    """How often a noisy group is measured at most."""

    @classmethod
    def quick(cls) -> Effort:
        """Enough to see that everything runs; its figures mean little."""
        few = cls(rounds=2, calls=150, concurrent_calls=600, local_calls=2_000, http_seconds=0.2, tokens=5_000)
        return replace(few, door_seconds=0.05, changes=3, clients=5, times=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """One candidate in one round: microseconds, and decisions a second; more by name."""

    p50: float
    p99: float
    per_second: float
    more: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, spans_ns: Sequence[int], elapsed_ns: int, count: int | None = None, **more: float) -> Sample:
        """Take the spans of single calls, and the time that all of them took together."""
        ordered = sorted(spans_ns)
        p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        per_second = (count or len(ordered)) * 1e9 / elapsed_ns
        return cls(statistics.median(ordered) / 1e3, p99 / 1e3, per_second, more)

    def value(self, name: str) -> float:
        """Return a figure by its name."""
        return self.more[name] if name in self.more else float(getattr(self, name))


Round = Callable[[], Sample]


class Series:
    """The samples of several candidates, round by round."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self.samples = samples

    def median(self, candidate: str, name: str = "p50") -> float:
        """Return the median over the rounds of one figure."""
        return statistics.median(sample.value(name) for sample in self.samples[candidate])

    def ratio(self, ours: str, theirs: str, name: str = "p50") -> float:
        """Return the median over the rounds of the ratio inside a round."""
        pairs = zip(self.samples[ours], self.samples[theirs], strict=True)
        return statistics.median(a.value(name) / b.value(name) for a, b in pairs)

    def added_ratio(self, ours: str, theirs: str, base: str, name: str) -> float:
        """Return the same of what two candidates add to a third."""
        rows = zip(self.samples[ours], self.samples[theirs], self.samples[base], strict=True)
        return statistics.median((a.value(name) - c.value(name)) / (b.value(name) - c.value(name)) for a, b, c in rows)

    def spread(self, candidate: str, name: str = "p50") -> float:
        """Return how far the rounds lie apart: (most - least) / median."""
        values = [sample.value(name) for sample in self.samples[candidate]]
        return (max(values) - min(values)) / statistics.median(values)

    def to_json(self) -> dict[str, Any]:
        """Return the medians of every candidate."""
        names = ("p50", "p99", "per_second")
        return {
            candidate: {name: round(self.median(candidate, name), 3) for name in (*names, *samples[0].more)}
            for candidate, samples in self.samples.items()
        }


def interleave(candidates: Mapping[str, Round], rounds: int) -> Series:
    """Visit every candidate once in each round, after one visit that does not count."""
    for measure in candidates.values():
        measure()
    samples: dict[str, list[Sample]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, measure in candidates.items():
            samples[name].append(measure())
    return Series(samples)


def one_by_one(call: Callable[[str], Any], subjects: Sequence[str], calls: int) -> Round:
    """Measure each call by itself, subjects in turn."""
    order = [subjects[i % len(subjects)] for i in range(calls)]

    def measure() -> Sample:
        spans, start = [], perf_counter_ns()
        for subject in order:
            before = perf_counter_ns()
            call(subject)
            spans.append(perf_counter_ns() - before)
        return Sample.of(spans, perf_counter_ns() - start)

    return measure


def in_batches(call: Callable[[str], Any], subject: str, calls: int, batch: int = 100) -> Round:
    """Measure calls that are shorter than the clock is exact: p50 and p99 are those of a batch's mean."""
    turns = range(batch)

    def measure() -> Sample:
        spans, start = [], perf_counter_ns()
        for _ in range(max(1, calls // batch)):
            before = perf_counter_ns()
            for _ in turns:
                call(subject)
            spans.append((perf_counter_ns() - before) / batch)
        return Sample.of(spans, perf_counter_ns() - start, len(spans) * batch)

    return measure


def pin() -> str:
    """Bind this process, and all that it will start, to one core; return a sentence on it."""
    if not hasattr(os, "sched_setaffinity"):
        return "Not pinned: this system cannot bind a process to a core, so the figures mix two modes of scheduling."
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return (
        f"Clients, peers, servers and store are pinned to one core (number {core}). The reverse proxy and the decision "
        "service have another one."
    )
