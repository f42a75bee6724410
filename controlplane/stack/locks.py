"""
File locks that are held exactly as long as a process group lives.

A supervisor finds the processes of a killed supervisor by these locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

POLL_SECONDS = 0.05
SUPERVISOR = "supervisor.lock"


class StackError(RuntimeError):
    """Raised if the stack cannot start. The message names the process and the reason."""


def own_lock(directory: Path) -> int:
    """Lock *directory* for this supervisor, and return the lock's descriptor, or raise StackError if another has it."""
    lock = os.open(directory / SUPERVISOR, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _try_lock(lock):
        holder = os.pread(lock, 20, 0).decode().strip()
        os.close(lock)
        raise StackError(f"The stack is already running (process {holder}). Stop it first.")
    os.pwrite(lock, f"{os.getpid():<20}\n".encode(), 0)
    return lock


async def end_leftovers(directory: Path, grace_seconds: float = 5.0) -> None:
    """
    End every process group that a killed supervisor has left. The caller has locked *directory* with ``own_lock``.
    """
    others = [path for path in directory.glob("*.lock") if path.name != SUPERVISOR]
    for lock in await asyncio.gather(*(free_lock(path, grace_seconds) for path in others)):
        os.close(lock)


async def free_lock(path: Path, grace_seconds: float) -> int:
    """
    End the process that holds the lock *path*, lock it for a new process, and return the descriptor.

    A process group that still has the lock is ended first. The processes of a group inherit the lock, so it is held
    exactly as long as one of them lives. The group id in the file is valid for that time, so no other process can be
    killed by mistake.

    Raises:
        StackError: The process group does not end.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for sent, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, grace_seconds)):
        if _try_lock(lock):
            return lock
        signal_group(int(os.pread(lock, 20, 0)), sent)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not _try_lock(lock):
            await asyncio.sleep(POLL_SECONDS)
    if not _try_lock(lock):
        raise StackError(f"A process of an earlier run still holds the lock {path}.")
    return lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def signal_group(group: int, sent: signal.Signals) -> None:
    """Send a signal to every process of a group, if the group still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, sent)
