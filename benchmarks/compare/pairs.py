"""Run the blocks of both trees by turns, in pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from benchmarks.compare.names import STORE_TIME
from benchmarks.compare.processes import Libraries, WorkerError, WorkerProcess, store_time
from benchmarks.compare.ratios import Row, paired

PAIRS_A_LIFE = 2
"""
Pairs that two workers run of each shape before others replace them, one in each order. Two processes that run the same
code differ by up to 6 % for as long as they live, by where things lie in memory and by the hashes of strings. More
pairs of the same processes would not tell that from a change.
"""
MOST_REPEATS = 5
PREFIXES = {"old": "o:", "new": "n:"}

Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is measured.

    Attributes:
        trees: The folders of ``old`` and ``new``.
        shapes: Names of shapes.
        pairs: Pairs of blocks for each shape.
        block_ms: Milliseconds that a block takes about.
    """

    trees: dict[str, Path]
    shapes: Sequence[str]
    pairs: int
    block_ms: float


@dataclass(slots=True)
class Measured:
    """
    What was measured.

    Attributes:
        missing: The trees that cannot run a shape, by shape.
        times: Microseconds of a call, by shape and tree; the n-th of old and of new are a pair.
    """

    missing: dict[str, list[str]] = field(default_factory=dict)
    times: defaultdict[str, Samples] = field(default_factory=lambda: defaultdict(lambda: {"old": [], "new": []}))

    def rows(self) -> list[Row]:
        """Return a row for each shape."""
        return [
            paired(name, "us", both["old"], both["new"], together=PAIRS_A_LIFE) for name, both in self.times.items()
        ]


def measure(plan: Plan, url: str, progress: Callable[[str], None]) -> Measured:
    """
    Measure every shape.

    Args:
        url: A store that nobody else uses; it is cleared.
        progress: Gets a line on what is measured now.
    """
    measured, calls = Measured(), dict[str, int]()
    with Redis.from_url(url, decode_responses=True, protocol=2) as client:
        for start in range(0, plan.pairs, PAIRS_A_LIFE):
            numbers = range(start, min(start + PAIRS_A_LIFE, plan.pairs))
            client.flushall()
            client.function_flush("SYNC")
            with _workers(plan, url, client, seed=start) as life:
                for shape in plan.shapes:
                    progress(f"{shape}: pairs {numbers.start + 1} to {numbers.stop} of {plan.pairs}")
                    life.run(shape, numbers, calls, measured)
    return measured


class _Life:
    """Two workers, and what they need of the store."""

    def __init__(self, plan: Plan, workers: dict[str, WorkerProcess], libraries: Libraries, client: Redis) -> None:
        self._plan = plan
        self._workers = workers
        self._libraries = libraries
        self._client = client

    def run(self, shape: str, numbers: range, calls: dict[str, int], measured: Measured) -> None:
        """Measure pairs of one shape. *calls*: how many make a block, by shape; found out once, for both trees."""
        about = {}
        for tree, worker in self._workers.items():
            self._libraries.select(tree)
            about[tree] = worker.ask("enter", shape=shape)
        if all(about.values()):
            if shape not in calls:
                calls[shape] = _calls(self._plan.block_ms, **about["old"])
            for number in numbers:
                self._pair(shape, number, calls[shape], measured)
        else:
            measured.missing[shape] = [tree for tree in about if not about[tree]]
        for worker in self._workers.values():
            worker.ask("leave")

    def _pair(self, shape: str, number: int, calls: int, measured: Measured) -> None:
        problem = ""
        for _ in range(MOST_REPEATS):
            found = {}
            for tree in ("old", "new") if number % 2 == 0 else ("new", "old"):
                found[tree] = self._block(shape, tree, calls)
            problem = next((block["problem"] for block in found.values() if block["problem"]), "")
            if not problem:
                break
        else:
            raise WorkerError(f"{shape}: {MOST_REPEATS} pairs in a row went wrong: {problem}.")
        for tree, block in found.items():
            measured.times[shape][tree].append(block["ns"] / 1_000)
            if shape in STORE_TIME:
                measured.times[STORE_TIME[shape]][tree].append(block["store_us"])

    def _block(self, shape: str, tree: str, calls: int) -> dict[str, float | str]:
        self._libraries.select(tree)
        if shape not in STORE_TIME:
            return self._workers[tree].ask("block", calls=calls)
        called, used = store_time(self._client)
        block = self._workers[tree].ask("block", calls=calls)
        called_then, used_then = store_time(self._client)
        return {**block, "store_us": (used_then - used) / (called_then - called)}


@contextmanager
def _workers(plan: Plan, url: str, client: Redis, seed: int) -> Iterator[_Life]:
    libraries, workers = Libraries(client), dict[str, WorkerProcess]()
    with ExitStack() as stack:
        for tree, folder in plan.trees.items():
            workers[tree] = stack.enter_context(WorkerProcess(folder, url, PREFIXES[tree], seed))
            libraries.read(tree)
        yield _Life(plan, workers, libraries, client)


def _calls(block_ms: float, ns: float, step: int, most: int | None) -> int:
    """Return how many calls make a block: a multiple of *step*, at most *most*."""
    wanted = block_ms * 1e6 / ns
    if most is not None:
        wanted = min(wanted, most)
    return max(1, round(wanted / step)) * step
