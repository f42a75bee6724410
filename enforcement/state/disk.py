"""
Keep the last good documents on disk, so that a process can start while the store is unavailable.

See :mod:`enforcement.failover.private_file` for the file.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from enforcement.failover.private_file import read, write
from enforcement.model.checks import is_integer
from enforcement.model.sizes import MAX_NUMBER
from enforcement.model.strict_json import loads
from enforcement.state.published import PublishedState, name_of

_HEADER: Final = b"sluicegate-snapshot 1\n"
_HEAD_BYTES: Final = 200
"""The lines of the revision and the identity, which come first, end within these."""

_CONFIRMED_HEADER: Final = b"sluicegate-confirmed 1\n"
LONG_AGO_SECONDS: Final = 1e9
"""Stands for an age that nobody knows."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

logger = logging.getLogger("sluicegate.disk")


class HostClock:
    """The clocks of this host that go on while no process runs."""

    def wall_us(self) -> int:
        """Return the time in microseconds since the epoch. Somebody may set it."""
        return time.time_ns() // 1_000

    def up_us(self) -> int:
        """Return the microseconds since the host was started. Nobody can set it."""
        return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000

    def boot(self) -> str:
        """Return a name of this start of the host, or an empty string if it has none."""
        try:
            return _BOOT_ID.read_text().strip()
        except OSError:
            return ""


def save_confirmation(path: Path, age_seconds: float, clock: HostClock) -> None:
    """Write to *path* that the store confirmed the documents so many seconds ago. Raises OSError."""
    age_us = round(age_seconds * 1_000_000)
    line = json.dumps([clock.wall_us() - age_us, clock.boot(), clock.up_us() - age_us]).encode() + b"\n"
    write(path, _CONFIRMED_HEADER, [line], outlives_host=False)


def unconfirmed_seconds(path: Path, documents: Path, clock: HostClock) -> float:
    """
    Return for how many seconds the store has not confirmed the documents on disk.

    The longest span counts that a clock shows, so a clock that was set back makes it no shorter.

    Args:
        path: That of :func:`save_confirmation`. An earlier version wrote none; then the documents are as old as their
            file.
        documents: The file of the documents.
        clock: That of this host.
    Returns:
        Seconds, LONG_AGO_SECONDS if they are unknown.
    """
    try:
        (line,) = read(path, _CONFIRMED_HEADER)
        at_us, boot, up_us = loads(line)
    except FileNotFoundError:
        try:
            at_us, boot, up_us = documents.stat().st_mtime_ns // 1_000, "", 0
        except OSError:
            return LONG_AGO_SECONDS
    except (OSError, ValueError, TypeError, RecursionError) as exc:
        logger.warning("Ignored when the store confirmed the documents, in %s: %s", path, exc)
        return LONG_AGO_SECONDS
    if not is_integer(at_us, 0, MAX_NUMBER) or not is_integer(up_us, -MAX_NUMBER, MAX_NUMBER):
        return LONG_AGO_SECONDS
    age_us = clock.wall_us() - at_us
    if boot and boot == clock.boot():
        age_us = max(age_us, clock.up_us() - up_us)
    return age_us / 1_000_000 if age_us >= 0 else LONG_AGO_SECONDS


def save(path: Path, documents: PublishedState) -> bool:
    """
    Write *documents* to a file that only its owner may read, and return whether the disk now has them or later ones.

    The old file stays until the new one is complete. Another process may have written a later state to it, which stays:
    with an earlier one, the next process would obey what was revoked in between.

    If the disk is full, read-only or missing, this is logged once and counted, and no error is raised.
    """
    try:
        if not _has_later(path, documents):
            write(path, _HEADER, _lines(documents))
    except OSError as exc:
        if not documents.disk_failures:
            logger.warning("Cannot write the last good documents to %s: %s", path, exc)
        documents.disk_failures += 1
        return False
    return True


def restore(path: Path, documents: PublishedState) -> bool:
    """
    Load the state that was saved to *path* into *documents*, and return whether a state was loaded.

    A file is ignored, and this is logged, if it is truncated, altered, from another version or writable by others.
    """
    try:
        texts = dict(loads(line) for line in read(path, _HEADER))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as exc:
        return _ignored(path, documents, str(exc))
    tokens = {name.removeprefix("token:"): texts.pop(name) for name in list(texts) if name.startswith("token:")}
    problems = documents.load(texts, tokens)
    if any(problem.whole for problem in problems):
        return _ignored(path, documents, problems[0].reason)
    for problem in problems:
        logger.warning("Ignored a document in %s. %s: %s", path, problem.document, problem.reason)
    return True


def _has_later(path: Path, documents: PublishedState) -> bool:
    """Return whether a file has a later state. Almost always its first lines say that it has not."""
    try:
        with path.open("rb") as file:
            if file.readline() != _HEADER or not _is_later(file.readlines(_HEAD_BYTES), documents):
                return False
        return _is_later(read(path, _HEADER), documents)
    except (OSError, ValueError, RecursionError):
        return False  # a file that cannot be used is replaced


def _is_later(lines: Sequence[bytes], documents: PublishedState) -> bool:
    (_, revision), (_, store_id) = map(loads, lines[:2])
    name = name_of(revision, store_id)
    return name is not None and name > documents.current.name


def _ignored(path: Path, documents: PublishedState, reason: str) -> bool:
    documents.disk_failures += 1
    logger.warning("Ignored the saved documents in %s: %s", path, reason)
    return False


def _lines(documents: PublishedState) -> Iterator[bytes]:
    # One line for each document, because one long call of the JSON writer would delay every request of this process.
    for item in documents.texts():
        yield json.dumps(item, separators=(",", ":")).encode() + b"\n"
