"""Send requests to a store from one or several processes, and write every decision to a ledger."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from enforcement.limiter import Limiter
from enforcement.model.limits import Limit
from enforcement.plan.decision import Decision
from enforcement.proof.history import LedgerWriter

READY: Final = "ready\n"
FLEET_SECONDS: Final = 30.0
"""How long a process waits until it sees as many instances as requested."""


@dataclass(frozen=True, slots=True)
class Load:
    """
    The load of one process.

    Args:
        url: Of the store.
        path: The ledger, a new file.
        instance: Name of the process in the fleet.
        limits: Limits in code, which count *key*. Without any the policies of *token* are the limits.
        key: The caller that the limits count.
        token: A credential. It is not written to the ledger.
        costs: Cost of each decision, in requests.
        calls: Number of decisions. 0: until *seconds* have passed.
        seconds: Length of the load.
        pause: Seconds between two decisions.
        timeout: Time budget of a decision, in seconds.
        fleet: Begin when this many instances are alive.
    """

    url: str
    path: Path
    instance: str
    limits: tuple[Limit, ...] = ()
    key: str = "k"
    token: str = ""
    costs: int = 1
    calls: int = 0
    seconds: float = 10.0
    pause: float = 0.0
    timeout: float = 0.025
    fleet: int = 1

    def run(self, begin: Callable[[], object] = lambda: None) -> int:
        """
        Make the decisions, write them to a ledger, and return their number.

        The load ends early if the process gets SIGTERM.

        Args:
            begin: Called when all is prepared. The load begins when it returns.
        Raises:
            TimeoutError: The fleet stays smaller than *fleet*.
        """
        limiter = Limiter(self.url, timeout=self.timeout, instance=self.instance)
        writer = LedgerWriter(self.path, self.instance, self.timeout * 1_000)
        stop: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        try:
            self._prepare(limiter)
            begin()
            return self._make_decisions(limiter, writer, stop)
        finally:
            signal.signal(signal.SIGTERM, before)
            limiter.close()
            writer.close()

    def _prepare(self, limiter: Limiter) -> None:
        """
        Connect the limiter, and wait until the fleet is complete. A process that decides alone needs to know how many
        instances there are.
        """
        limiter.start(0.0 if self.limits else 5.0)
        self._decide(limiter, 0)
        deadline = time.monotonic() + FLEET_SECONDS
        while (seen := limiter.stats().fleet_size) < self.fleet:
            if time.monotonic() > deadline:
                raise TimeoutError(f"fleet: must be {self.fleet} instances, got {seen} after {FLEET_SECONDS:g} s.")
            time.sleep(0.01)

    def _decide(self, limiter: Limiter, costs: int) -> Decision:
        if self.limits:
            return limiter.hit(self.limits, self.key, costs)
        return limiter.check(self.token, costs)

    def _make_decisions(self, limiter: Limiter, writer: LedgerWriter, stop: Sequence[int]) -> int:
        end, number = time.monotonic() + self.seconds, 0
        while not stop and time.monotonic() < end and (not self.calls or number < self.calls):
            number += 1
            started_at_us, began = time.time_ns() // 1_000, time.perf_counter_ns()
            decision = self._decide(limiter, self.costs)
            took_us = (time.perf_counter_ns() - began) // 1_000
            writer.write(f"{self.instance}-{number}", started_at_us, started_at_us + took_us, decision, self.costs)
            if self.pause:
                time.sleep(self.pause)
        return number


class WorkloadFleet:
    """
    Processes that begin together, and that end with the block at the latest.

    Args:
        commands: One for each process. It prints ``ready``, and begins at a line on its standard input.
        options: Passed on to ``subprocess.Popen``.
    Raises:
        RuntimeError: A process ended before it was ready.
    """

    def __init__(self, commands: Sequence[Sequence[str]], **options: Any) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        try:
            for command in commands:
                self.processes.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
                )
            for process in self.processes:
                assert process.stdout is not None
                if process.stdout.readline() != READY:
                    raise RuntimeError(f"A process of the load ended before it began, with status {process.wait(10)}.")
        except BaseException:
            self.close()
            raise

    def go(self) -> None:
        """Send all processes the signal to begin."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def wait(self, seconds: float) -> list[int]:
        """
        Wait until all processes have ended, and return their exit statuses.

        Raises:
            subprocess.TimeoutExpired: A process is still running.
        """
        return [process.wait(seconds) for process in self.processes]

    def close(self) -> None:
        """Kill all processes that are still running."""
        for process in self.processes:
            process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_for_the_signal() -> None:
    """Print ``ready`` and wait for a line on standard input."""
    print(READY, end="", flush=True)
    sys.stdin.readline()
