"""Locks that live exactly as long as a process group: what a killed supervisor left behind is found by them."""

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
    """The stack cannot start; the message names the process and the reason."""


def own_lock(directory: Path) -> int:
    """Lock *directory* for this supervisor; refuse where a live one holds it."""
    lock = os.open(directory / SUPERVISOR, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _try_lock(lock):
        holder = os.pread(lock, 20, 0).decode().strip()
        os.close(lock)
        raise StackError(f"The stack runs already (process {holder}). Stop it first.")
    os.pwrite(lock, f"{os.getpid():<20}\n".encode(), 0)
    return lock


async def end_leftovers(directory: Path, grace_seconds: float = 5.0) -> None:
    """End every process group that a killed supervisor left behind; *directory* is locked by ``own_lock``."""
    others = [path for path in directory.glob("*.lock") if path.name != SUPERVISOR]
    for lock in await asyncio.gather(*(free_lock(path, grace_seconds) for path in others)):
        os.close(lock)


async def free_lock(path: Path, grace_seconds: float) -> int:
    """
    Lock *path* for a process about to start; end the process group that a killed supervisor left holding it.

    The lock is inherited, so it is held exactly as long as one process of the group lives, and the group id in it is
    true that long: a stale pid file cannot get a stranger killed.
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
        raise StackError(f"A process that an earlier run left behind still holds {path}.")
    return lock


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def signal_group(group: int, sent: signal.Signals) -> None:
    """Send a signal to every process of a group that is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, sent)
