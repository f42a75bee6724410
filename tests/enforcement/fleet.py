"""Several processes of the load that we ship, and what their ledgers say together."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from enforcement.proof.checker import judge
from enforcement.proof.counters import read_counters
from enforcement.proof.evidence import Claim, Evidence, Terms
from enforcement.proof.history import Ledger, read
from enforcement.proof.workload import READY
from enforcement.proof.workload import WorkloadFleet as Processes
from tests.enforcement.world import eventually
from tests.forks import Forked


@dataclass(frozen=True)
class Line:
    """One decision of one process."""

    process: int
    at: float
    decided_at_us: int
    took_ms: float
    allowed: bool
    source: str
    reason: str


class Fleet(Processes):
    """
    Processes that ask for one key, started together; options are those of ``enforcement.proof load``.

    Args:
        name: What their names begin with; two fleets of one store need two.
    """

    def __init__(
        self, url: str, limits: list[dict[str, Any]], processes: int, folder: Path, *options: str, name: str = "p"
    ) -> None:
        self.paths = [folder / f"{name}{number}.ledger" for number in range(processes)]
        command = ["-m", "enforcement.proof", "load", "--wait", "--url", url, "--out", str(folder)]
        command += ["--limits", json.dumps(limits), "--key", "k", "--timeout", "1.0", *options]
        super().__init__([])
        self.processes = [Forked([*command, "--instance", path.stem]) for path in self.paths]
        for process in self.processes:
            assert process.stdout.readline() == READY

    def await_back(self, source: str = "store") -> None:
        """Wait until every process is decided for by the store, or another source."""
        assert eventually(lambda: all(f'"source":"{source}"' in _last_line(path) for path in self.paths), 20.0)

    def end_when_back(self, source: str = "store") -> None:
        """Wait until every process is decided for by the store, or another source, and tell all to end."""
        self.await_back(source)
        for process in self.processes:
            process.terminate()

    def written(self, what: bytes) -> int:
        """Return how often some bytes are in the ledgers by now."""
        return sum(path.read_bytes().count(what) for path in self.paths)

    def ledgers(self) -> list[Ledger]:
        """Wait until all have ended, and return what they wrote."""
        self.wait(120)
        return [read(path) for path in self.paths]

    def ledger(self) -> list[Line]:
        """Return the lines of all, by their instants."""
        lines = [
            Line(number, r.started_at_us / 1_000_000, r.decided_at_us, r.took_ms, r.allowed, r.source, r.reason)
            for number, ledger in enumerate(self.ledgers())
            for r in ledger.records
        ]
        return sorted(lines, key=lambda line: line.at)

    def broken(self, store: str = "", **terms: Any) -> list[Claim]:
        """Return the claims that do not hold; with the URL of a store also those about its counters."""
        ledgers = self.ledgers()
        # Who has to wait for a core at one decision in a hundred has to wait after as many pauses.
        late = late_ms(ledgers)
        terms["margin_ms"] = terms.get("margin_ms", 5.0) + late[-1]
        evidence = Evidence(ledgers, Terms(**{"alone_ms": max(10.0, late[len(late) * 99 // 100]), **terms}))
        readings = read_counters(store, evidence.counters.values()) if store else ()
        return [claim for claim in judge(evidence, readings) if claim.held is False]


def late_ms(ledgers: Iterable[Ledger]) -> list[float]:
    """Return how much longer than the shortest one each pause between two decisions of a process took, in order."""
    late = [0.0]
    for ledger in ledgers:
        pauses = [(later.started_at_us - record.ended_at_us) / 1_000 for record, later in pairwise(ledger.records)]
        late += [pause - min(pauses) for pause in pauses]
    return sorted(late)


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1_000))
        return file.read().decode().splitlines()[-1]


@contextmanager
def fleet(url: str, limits: list[dict[str, Any]], processes: int, *options: str, name: str = "p") -> Iterator[Fleet]:
    """Give a fleet, and leave none of its processes and files behind."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Fleet(url, limits, processes, Path(folder), *options, name=name) as made,
    ):
        yield made
