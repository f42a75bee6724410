"""
The last good documents on disk, so that a process can start while the store is away.

A file is taken whole or not at all: a checksum tells, and a new file replaces the old one in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from enforcement.state.published import PublishedState

MAX_BYTES: Final = 268_435_456

_HEADER: Final = b"sluicegate-snapshot 1\n"
_TRAILER: Final = b"sha256 "

logger = logging.getLogger("sluicegate.disk")


def save(path: Path, documents: PublishedState) -> None:
    """
    Write what *documents* hold to *path*, for its owner only; the old copy stays until the new one is safe on disk.

    A disk that is full, read-only or gone is no reason to stop: it is logged once, and counted.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                hashed = hashlib.sha256()
                for line in _lines(documents):
                    hashed.update(line)
                    file.write(line)
                file.write(_TRAILER + hashed.hexdigest().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)
    except OSError as exc:
        if not documents.disk_failures:
            logger.warning("The last good documents cannot be kept in %s: %s", path, exc)
        documents.disk_failures += 1


def restore(path: Path, documents: PublishedState) -> bool:
    """
    Give *documents* the state that was saved to *path*; tell whether there was a good one.

    A file that is truncated, altered, of another version, or that others may write to is ignored, and one line says so.
    """
    try:
        texts = _read(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError) as exc:
        return _ignored(path, documents, str(exc))
    tokens = {name.removeprefix("token:"): texts.pop(name) for name in list(texts) if name.startswith("token:")}
    problems = documents.load(texts, tokens)
    if any(problem.whole for problem in problems):
        return _ignored(path, documents, problems[0].reason)
    for problem in problems:
        logger.warning("Ignored in %s: %s: %s", path, problem.document, problem.reason)
    return True


def _ignored(path: Path, documents: PublishedState, reason: str) -> bool:
    documents.disk_failures += 1
    logger.warning("The documents kept in %s are ignored: %s", path, reason)
    return False


def _lines(documents: PublishedState) -> Iterator[bytes]:
    # A line for each document: one long call of a JSON writer would hold up every request of this process.
    yield _HEADER
    for item in documents.texts():
        yield json.dumps(item, separators=(",", ":")).encode() + b"\n"


def _read(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise ValueError("others may write to the file")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"it has {status.st_size} bytes")
        content = file.read()
    if not content.startswith(_HEADER):
        raise ValueError("it was not written by this version")
    body, _, checksum = content.rpartition(_TRAILER)
    if checksum != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise ValueError("its checksum does not match")
    return dict(json.loads(line) for line in body[len(_HEADER) :].splitlines())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
