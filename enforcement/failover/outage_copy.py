"""
Keep on disk what a process needs to take its share of the quotas, and no second one, after a restart in an outage.

That is the size of the fleet, in one file for all processes with this folder, and the local counters, in a file for
each of them. A process takes over the file of one that has ended: the first whose lock it gets.

Without a state directory, the processes of a user on a host share a folder among the temporary ones. So those that
start in an outage know of each other, though not of other hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

from enforcement.failover.fallback import Fallback
from enforcement.failover.private_file import read, write
from enforcement.failover.saved_counter import SavedCounter
from enforcement.model.checks import is_integer
from enforcement.model.sizes import MAX_FLEET_SIZE
from enforcement.model.strict_json import loads

MAX_PROCESSES: Final = 1_000
"""Processes with one folder. Further ones keep no copy."""
KEEP_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.05
"""How often a process that nobody has told looks for others."""

_FLEET_HEADER: Final = b"sluicegate-fleet 1\n"
_SHARES_HEADER: Final = b"sluicegate-shares 1\n"

logger = logging.getLogger("sluicegate.disk")


def shared_folder() -> Path | None:
    """Return the folder that all processes of this user on this host share, or None if there can be no private one."""
    folder = Path(tempfile.gettempdir()) / f"sluicegate-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if private else None


class OutageCopy:
    """
    The copy of one process.

    Args:
        folder: None: the shared one if *share* is True, else nothing is kept.
        name: Part of the names of the files, which differs for each prefix of keys.
        fallback: Has the local counters.
        share: Whether to use the folder of all processes of this user on this host.

    Attributes:
        fleet_size: The highest number of live instances on disk, or 0 if it is unknown.
        failures: How often a file could not be written or used.
    """

    def __init__(self, folder: Path | None, name: str, fallback: Fallback, *, share: bool = False) -> None:
        self.fleet_size = 0
        self.failures = 0
        self._folder = folder
        self._share = share
        self._name = name
        self._fallback = fallback
        self._joined = False  # beside living processes, and took over the file of none
        self._alive, self._look_at = 1, float("-inf")
        self._lock: int | None = None
        self._shares: Path | None = None
        self._saved = (0, 0)
        self._due_at = float("-inf")

    def open(self) -> None:
        """Claim a file, and restore from it what this process does not know. A second call does nothing."""
        if self._folder is None and self._share:
            self._folder = shared_folder()
        if self._folder is None or self._lock is not None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._claim(self._folder)
        except OSError as exc:
            self._failed("Cannot keep the local counters in", self._folder, exc)
        self._restore()

    def sharers(self) -> int:
        """
        Return among how many processes a quota is divided without the store, if nobody has told this one.

        What a fleet of known size has is divided already, so whoever joins it in an outage gets the least share. If
        nobody knows the size, those that share the folder divide it.
        """
        if self.fleet_size:
            return MAX_FLEET_SIZE if self._joined else self.fleet_size
        now = monotonic()
        if self._folder is not None and self._lock is not None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._alive = max(self._alive, 1 + sum(map(_is_locked, self._locks(self._folder))))
        return self._alive

    def _locks(self, folder: Path) -> Iterator[Path]:
        """Yield the lock of each other process that there is or was."""
        own = None if self._shares is None else self._shares.with_suffix(".lock")
        return (path for path in folder.glob(f"shares-{self._name}-*.lock") if path != own)

    def save(self, fleet_size: int) -> None:
        """Write what has changed, at most once a second. *fleet_size* is 0 if the store has not told it."""
        now = monotonic()
        if self._folder is not None and now >= self._due_at:
            self._due_at = now + KEEP_SECONDS
            self._save(self._folder, fleet_size)

    def close(self, fleet_size: int) -> None:
        """Write what has changed, and let another process take over the file."""
        if self._folder is not None:
            self._save(self._folder, fleet_size)
        self._release()

    def after_fork(self) -> None:
        """Claim another file in a child process if the parent has one, which stays that of the parent."""
        if self._lock is not None:
            self._release()
            self._saved = (0, 0)
            self.open()

    def _release(self) -> None:
        """Let go of the file. A parent process that holds the lock as well keeps it."""
        lock, self._lock, self._shares = self._lock, None, None
        if lock is not None:
            os.close(lock)

    def _claim(self, folder: Path) -> None:
        for number in range(MAX_PROCESSES):
            path = folder / f"shares-{self._name}-{number}"
            is_new = not path.with_suffix(".lock").exists()
            lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                os.close(lock)
                if not isinstance(exc, BlockingIOError):
                    raise
            else:
                self._lock, self._shares, self._joined = lock, path, is_new and number > 0
                return

    def _fleet_path(self, folder: Path) -> Path:
        return folder / f"fleet-{self._name}"

    def _restore(self) -> None:
        if self._folder is not None and (lines := self._read(self._fleet_path(self._folder), _FLEET_HEADER)):
            with contextlib.suppress(ValueError):
                size = loads(lines[0])
                self.fleet_size = size if is_integer(size, 1, MAX_FLEET_SIZE) else 0
        if self._shares is not None and (lines := self._read(self._shares, _SHARES_HEADER)):
            self._fallback.restore(list(self._counters(self._shares, lines)))

    def _counters(self, path: Path, lines: Sequence[bytes]) -> Iterator[SavedCounter]:
        """Yield the counters of a file. One that cannot be read does not take the others with it."""
        for line in lines:
            try:
                yield SavedCounter.from_json(loads(line, fractions=True))  # the level of a bucket is a float
            except ValueError as exc:
                self._failed("Ignored a local counter in", path, exc)

    def _read(self, path: Path, header: bytes) -> Sequence[bytes]:
        try:
            return read(path, header)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as exc:
            self._failed("Ignored", path, exc)
            return ()

    def _save(self, folder: Path, fleet_size: int) -> None:
        fleet, changes = self._saved
        try:
            if fleet_size and fleet_size != fleet:
                line = json.dumps(fleet_size).encode() + b"\n"
                write(self._fleet_path(folder), _FLEET_HEADER, [line], outlives_host=False)
            if self._shares is not None and changes != self._fallback.changes:
                changes = self._fallback.changes
                write(self._shares, _SHARES_HEADER, self._lines(), outlives_host=False)
        except OSError as exc:
            self._failed("Cannot write to", folder, exc)
        self._saved = fleet_size, changes

    def _lines(self) -> Iterator[bytes]:
        # One line for each counter, because one long call of the JSON writer would delay every request of this process.
        for counter in self._fallback.saved():
            yield json.dumps(counter.to_json(), separators=(",", ":")).encode() + b"\n"

    def _failed(self, what: str, path: Path, exc: Exception) -> None:
        if not self.failures:
            logger.warning("%s %s: %s", what, path, exc)
        self.failures += 1


def _is_locked(path: Path) -> bool:
    """Return whether a process holds this lock."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
