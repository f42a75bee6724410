"""Runs ``manage.py up`` for tests, in a checkout of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from enforcement.embedded import free_port
from tests.controlplane.forks import Process, run_manage, start_manage
from tests.repository import ROOT, copy_code

SECONDS = 90.0
# What the machine's own environment says of stores and databases is not meant for these runs.
KEPT = ("PATH", "HOME", "LANG")


@dataclass(eq=False)
class Run:
    process: Process
    folder: Path
    web_url: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def said(self) -> str:
        return (self.folder / "output").read_text()

    def proxies(self) -> list[str]:
        """The addresses of the proxies, as they were announced."""
        return next(line for line in self.said().splitlines() if line.startswith("  Proxies")).split()[1:4]

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command in the same checkout."""
        return run_manage(self.folder, arguments, {**own_environment(), **self.environment})

    def groups(self) -> dict[str, int]:
        """The process group of each part, as its lock file names it."""
        locks = (self.folder / "var" / "run").glob("*.lock")
        return {path.stem: int(path.read_text()) for path in locks if path.stem not in ("supervisor", "migrate")}


def checkout(folder: Path, database: Path | None = None) -> Path:
    """
    Copy the code, so that var/ is one of its own.

    Args:
        database: What becomes the database in var/, if there shall be one.
    """
    for name in ("controlplane", "enforcement", "templates"):
        copy_code(ROOT / name, folder / name)
    shutil.copy(ROOT / "manage.py", folder)
    if database:
        (folder / "var").mkdir()
        shutil.copy(database, folder / "var" / "controlplane.sqlite3")
    return folder


@contextmanager
def up(folder: Path, environment: Mapping[str, str]) -> Iterator[Run]:
    """Run the platform."""
    port = environment.get("SLUICEGATE_PORT") or str(free_port())
    given = {**own_environment(), **environment, "SLUICEGATE_PORT": port}
    with (folder / "output").open("wb") as output:
        process = start_manage(folder, ["up"], given, output.fileno())
    run = Run(process, folder, f"http://127.0.0.1:{port}", environment)
    try:
        assert eventually(lambda: "Sluicegate is up" in run.said() or process.poll() is not None), run.said()
        assert process.poll() is None, run.said()
        yield run
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)


def own_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def eventually(condition) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
