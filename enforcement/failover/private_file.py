"""
Keep lines in a file that only its owner may read or write.

A file is used as a whole or not at all. It has a checksum, and a new file replaces the old one in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 268_435_456

_TRAILER: Final = b"sha256 "


def write(path: Path, header: bytes, lines: Iterable[bytes], *, outlives_host: bool = True) -> None:
    """
    Write a file. The old one stays until the new one is complete.

    Args:
        header: The first line, which names the format.
        lines: The others. Each ends with a newline.
        outlives_host: Whether to wait until the disk has the file. Without that, a crash of the host may lose it.
    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header)
            hashed = hashlib.sha256(header)
            for line in lines:
                hashed.update(line)
                file.write(line)
            file.write(_TRAILER + hashed.hexdigest().encode() + b"\n")
            if outlives_host:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    if outlives_host:
        _sync_folder(path.parent)


def read(path: Path, header: bytes) -> list[bytes]:
    """
    Return the lines of a file without the first one and the checksum.

    Raises:
        FileNotFoundError: There is no file.
        OSError: It cannot be read.
        ValueError: It is truncated, altered, of another format, too large, or writable by others.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
            raise ValueError("the file must not be writable by others")
        if status.st_size > MAX_BYTES:
            raise ValueError(f"the file must have at most {MAX_BYTES} bytes, got {status.st_size}")
        content = file.read()
    if not content.startswith(header):
        raise ValueError("the file must be written by this version")
    body, _, checksum = content.rpartition(_TRAILER)
    if checksum != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise ValueError("the checksum does not match")
    return body[len(header) :].splitlines()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
