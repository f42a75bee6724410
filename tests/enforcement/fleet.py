"""Several hammers at once, and what their ledgers say together."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One decision of one process."""

    process: int
    at: float
    took_ms: float
    allowed: bool
    source: str
    reason: str


class Fleet:
    """Processes that hammer one key, started together."""

    def __init__(self, url: str, limits: list[dict[str, Any]], processes: int, *options: str) -> None:
        command = [sys.executable, "-m", "tests.enforcement.hammer", url, json.dumps(limits), *options]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def go(self) -> None:
        """Let all begin."""
        for process in self.processes:
            process.stdin.write("\n")
            process.stdin.flush()

    def ledger(self) -> list[Line]:
        """Wait until all have ended, and return what they wrote."""
        lines = []
        for number, process in enumerate(self.processes):
            output, _ = process.communicate(timeout=120)
            lines += [Line(number, *json.loads(text)) for text in output.splitlines()]
        return sorted(lines, key=lambda line: line.at)


@contextmanager
def fleet(url: str, limits: list[dict[str, Any]], processes: int, *options: str) -> Iterator[Fleet]:
    """Give a fleet, and leave none of its processes behind."""
    made = Fleet(url, limits, processes, *options)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait(10)
            process.stdin.close()
            process.stdout.close()
