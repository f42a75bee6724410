"""
Stop a server in two steps, so that proxies choose another instance before it ends.

The server runs in a process of its own. SIGTERM first makes a file, and ``/readyz`` answers 503 from then on. Some
seconds later, the server gets the signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

from enforcement.service.settings import DRAINING_FILE

_PR_SET_PDEATHSIG: Final = 1  # of prctl(2)


def run_draining(command: Sequence[str], seconds: int) -> int:
    """
    Run a command of this library until it is stopped, and return its exit status.

    SIGTERM stops it after so many seconds. A second SIGTERM, or SIGINT, stops it at once.

    Args:
        command: Name of the command and its arguments.
        seconds: For which the server still answers, but is not ready.
    """
    with TemporaryDirectory(prefix="sluicegate-") as folder:
        mark = Path(folder, "draining")
        server = subprocess.Popen(
            [sys.executable, "-m", "enforcement", *command],
            env={**os.environ, DRAINING_FILE: str(mark)},
            process_group=0,  # Ctrl+C reaches this process only
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        for number, act in _handlers(server, mark, seconds).items():
            signal.signal(number, act)
        status = server.wait()
    return 0 if status in (-signal.SIGTERM, -signal.SIGINT) else status


def _handlers(
    server: subprocess.Popen[bytes], mark: Path, seconds: int
) -> dict[signal.Signals, Callable[[int, FrameType | None], None]]:
    def stop(number: int, frame: FrameType | None) -> None:
        server.terminate()

    def drain(number: int, frame: FrameType | None) -> None:
        if mark.exists():
            server.terminate()
        else:
            mark.touch()
            signal.alarm(seconds)

    return {signal.SIGTERM: drain, signal.SIGALRM: stop, signal.SIGINT: stop}


def _end_with_parent() -> None:
    """Have the kernel stop the server if this process is killed. Else it would keep the port."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
