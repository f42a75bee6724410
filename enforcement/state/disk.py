"""
Keep the last good documents on disk, so that a process can start while the store is unavailable.

See :mod:`enforcement.failover.private_file` for the file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from enforcement.failover.private_file import read, write
from enforcement.model.strict_json import loads
from enforcement.state.published import PublishedState, name_of

_HEADER: Final = b"sluicegate-snapshot 1\n"
_HEAD_BYTES: Final = 200
"""The lines of the revision and the identity, which come first, end within these."""

logger = logging.getLogger("sluicegate.disk")


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
