"""
Keep the last good documents on disk, so that a process can start while the store is unavailable.

A file is used as a whole or not at all. It has a checksum, and a new file replaces the old one in one step.
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

from enforcement.model.strict_json import loads
from enforcement.state.published import PublishedState

MAX_BYTES: Final = 268_435_456

_HEADER: Final = b"sluicegate-snapshot 1\n"
_TRAILER: Final = b"sha256 "

logger = logging.getLogger("sluicegate.disk")


def save(path: Path, documents: PublishedState) -> None:
    """
    Write *documents* to a file that only its owner may read. The old file stays until the new one is complete.

    If the disk is full, read-only or missing, this is logged once and counted, and no error is raised.
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
            logger.warning("Cannot write the last good documents to %s: %s", path, exc)
        documents.disk_failures += 1


def restore(path: Path, documents: PublishedState) -> bool:
    """
    Load the state that was saved to *path* into *documents*, and return whether a state was loaded.

    A file is ignored, and this is logged, if it is truncated, altered, from another version or writable by others.
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
        logger.warning("Ignored a document in %s. %s: %s", path, problem.document, problem.reason)
    return True


def _ignored(path: Path, documents: PublishedState, reason: str) -> bool:
    documents.disk_failures += 1
    logger.warning("Ignored the saved documents in %s: %s", path, reason)
    return False


def _lines(documents: PublishedState) -> Iterator[bytes]:
    # One line for each document, because one long call of the JSON writer would delay every request of this process.
    yield _HEADER
    for item in documents.texts():
        yield json.dumps(item, separators=(",", ":")).encode() + b"\n"


def _read(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise ValueError("the file must not be writable by others")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"the file must have at most {MAX_BYTES} bytes, got {status.st_size}")
        content = file.read()
    if not content.startswith(_HEADER):
        raise ValueError("the file must be written by this version")
    body, _, checksum = content.rpartition(_TRAILER)
    if checksum != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise ValueError("the checksum does not match")
    return dict(loads(line) for line in body[len(_HEADER) :].splitlines())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
