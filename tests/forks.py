"""
Run the command ``sluicegate`` in forks of one process that has imported everything.

A proxy or a decision service imports for half a second of the processor, and tests start hundreds of them. The tests of
the command itself, and ``make proof``, start interpreters.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.scale import scale

IMPORTED = (
    "tests.forks enforcement.cli.serve enforcement.cli.proxy enforcement.service.app enforcement.doors.proxy "
    "uvicorn.protocols.websockets.wsproto_impl httptools h2corn"
)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED.split())


class Forked:
    """A process with those parts of ``subprocess.Popen`` that tests use."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
        self._process = FORKS.Process(target=_run, args=(list(arguments), dict(environment), output))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("sluicegate", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def sluicegate(
    arguments: Sequence[str], environment: Mapping[str, str], output: Path | str = os.devnull
) -> Forked | subprocess.Popen[bytes]:
    """Start a command with exactly these variables, in a session of its own. What it writes is added to a file."""
    if scale(True, False) and "--workers" not in arguments:  # workers are interpreters anyway
        return Forked(arguments, environment, str(output))
    with open(output, "ab") as file:
        command = [sys.executable, "-m", "enforcement", *arguments]
        return subprocess.Popen(command, env=dict(environment), stdout=file, stderr=file, start_new_session=True)


def _run(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Become the command, in the fork."""
    from enforcement.cli import main

    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sluicegate", *arguments]
    sys.exit(main())
