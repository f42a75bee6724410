"""Asking a store as fast as it goes, and writing every decision down: one process, or several that begin at once."""

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

from enforcement.ledger.records import Writer
from enforcement.limiter import Limiter
from enforcement.model.limits import Limit
from enforcement.plan.decision import Decision

READY: Final = "ready\n"
FLEET_SECONDS: Final = 30.0
"""How long a process waits until it sees as many instances as it was told to."""


@dataclass(frozen=True, slots=True)
class Load:
    """
    What one process asks.

    Args:
        limits: Limits in code, with *key*; or none, and *token* is checked.
        key: Whom they count.
        token: A credential, whose policies are then the limits. It is not written down.
        costs: Requests that each decision is for.
        calls: Decisions; 0: until *seconds* are over.
        pause: Seconds between two decisions.
        timeout: Seconds a decision may take.
        fleet: Begin when so many instances are seen alive.
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
        Ask until the end, or until the process is told to terminate, and return how many decisions were made.

        Args:
            begin: Called once all is prepared; the load begins when it returns.
        Raises:
            TimeoutError: The fleet is not as large as it should be.
        """
        limiter = Limiter(self.url, timeout=self.timeout, instance=self.instance)
        writer = Writer(self.path, self.instance, self.timeout * 1_000)
        stop: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
        try:
            self._prepare(limiter)
            begin()
            return self._ask(limiter, writer, stop)
        finally:
            signal.signal(signal.SIGTERM, before)
            limiter.close()
            writer.close()

    def _prepare(self, limiter: Limiter) -> None:
        """Connect, and wait for the fleet: whoever decides alone has to know how many others do."""
        limiter.start(0.0 if self.limits else 5.0)
        self._decide(limiter, 0)
        deadline = time.monotonic() + FLEET_SECONDS
        while (seen := limiter.stats().fleet_size) < self.fleet:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Only {seen} of {self.fleet} instances were seen.")
            time.sleep(0.01)

    def _decide(self, limiter: Limiter, costs: int) -> Decision:
        if self.limits:
            return limiter.hit(self.limits, self.key, costs)
        return limiter.check(self.token, costs)

    def _ask(self, limiter: Limiter, writer: Writer, stop: Sequence[int]) -> int:
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


class Fleet:
    """
    Processes that are started one by one, begin together, and are gone when the block is left.

    Args:
        commands: One a process; each prints ``ready`` when it is, and begins at a line on its standard input.
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
        """Let all begin."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def wait(self, seconds: float) -> list[int]:
        """Wait until all have ended; return their statuses. Raises subprocess.TimeoutExpired."""
        return [process.wait(seconds) for process in self.processes]

    def close(self) -> None:
        """Leave no process behind."""
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
    """Say that this process is ready, and wait for a line on standard input."""
    print(READY, end="", flush=True)
    sys.stdin.readline()


__all__ = ["Fleet", "Load", "wait_for_the_signal"]
