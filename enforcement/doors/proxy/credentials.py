"""The credential that an upstream gets in place of the token."""

from __future__ import annotations

import logging
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enforcement.doors.proxy.connection import RawHeaders
from enforcement.doors.proxy.fields import CREDENTIALS, OWN_REQUEST
from enforcement.logs import RateLimitedLogger

logger = logging.getLogger("sluicegate.proxy")

RECHECK_SECONDS: Final = 1.0
"""How long a file is taken for unchanged."""

_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,16382}[\x21-\x7e])?")
_FIELD: Final = re.compile(r"[a-z0-9-]{1,64}")
_PROJECT: Final = re.compile(r"[A-Za-z0-9_-]{1,80}")
_SAY: Final = RateLimitedLogger(logger)


class NoCredential(Exception):
    """The credential of an upstream cannot be read, so that no request can be sent to it."""


@dataclass(slots=True)
class _Read:
    """The last reading of a file. *state* distinguishes the file from its successor. None: there is no file."""

    checked: float
    state: tuple[int, int, int] | None
    value: bytes | None


class Credentials:
    """
    The credentials for one upstream.

    Args:
        field: Name of the header field that carries the credential.
        value: The credential of all projects. Empty: there is none.
        file: Holds it in place of *value*. None: there is none.
        folder: Has a file for each project, with the project's id as its name. The file holds the credential of this
            project alone. None: no project has one of its own.
    Raises:
        ValueError: The field, the value or the file is not valid. The message begins with the name of the argument.
    """

    def __init__(
        self, field: str = "Authorization", value: str = "", file: Path | None = None, folder: Path | None = None
    ) -> None:
        if not _FIELD.fullmatch(field.lower()):
            raise ValueError(f"field: must be the name of a header field, got {field!r}.")
        if field.lower().encode() in OWN_REQUEST - CREDENTIALS:
            raise ValueError(f"field: must not be a field that the proxy itself sets or drops, got {field!r}.")
        if value and file is not None:
            raise ValueError("file: must not be set beside the value itself.")
        if folder is not None and not folder.is_dir():
            raise ValueError(f"folder: must be a folder, got {str(folder)!r}.")
        self.field: Final = field.lower().encode()
        self._value = self._checked(value, "value") if value else None
        self._file, self._folder = file, folder
        self._files: dict[Path, _Read] = {}
        if file is not None and self._read(file) is None:
            raise ValueError(f"file: cannot be read, got {str(file)!r}.")

    @property
    def configured(self) -> bool:
        """Whether there is any credential."""
        return self._value is not None or self._file is not None or self._folder is not None

    def of(self, project: str) -> RawHeaders:
        """
        Return the header field for a request of a project, in a list that is empty if there is no credential.

        Args:
            project: The id of the project. Empty if it is not known, which is no project with a file of its own.
        Raises:
            NoCredential: A file cannot be read, or a project has none and nothing else is configured.
        """
        value = self._own(project) if self._folder is not None else None
        if value is None:
            value = self._value if self._file is None else self._read(self._file)
        if value is None:
            if self._file is None and self._folder is None:
                return []
            _SAY.warning(project, "there is no credential for the upstream for the project %s", project)
            raise NoCredential
        return [(self.field, value)]

    def _own(self, project: str) -> bytes | None:
        """Return the credential of a project alone, or None if it has no file."""
        assert self._folder is not None
        if not _PROJECT.fullmatch(project):
            return None
        path = self._folder / project
        value = self._read(path)
        if value is None and (self._files[path].state is not None or not self._folder.is_dir()):
            # A file that is broken, or gone with its folder, does not make another credential right.
            _SAY.warning(project, "the credential of the project %s cannot be read", project)
            raise NoCredential
        return value

    def _read(self, path: Path) -> bytes | None:
        """Return the content of a file, or None if it has none that can be used. It is read again when it changes."""
        now, read = time.monotonic(), self._files.get(path)
        if read is not None and now - read.checked < RECHECK_SECONDS:
            return read.value
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("must be a regular file")  # to read a pipe could take for ever
            state = found.st_ino, found.st_size, found.st_mtime_ns
            if read is None or read.state != state:
                read = _Read(now, state, self._checked(path.read_text("latin-1").strip(), "file"))
        except FileNotFoundError:
            read = _Read(now, None, None)
        except (OSError, ValueError) as exc:
            _SAY.warning(str(path), "the credential in %s cannot be used: %s", path, exc)
            read = _Read(now, (0, 0, 0), None)
        read.checked = now
        self._files[path] = read
        return read.value

    def _checked(self, text: str, what: str) -> bytes:
        """Return the value of the field, with the scheme ``Bearer`` if it is a mere key."""
        if not _VALUE.fullmatch(text):
            raise ValueError(f"{what}: must have 1 to 16384 printable ASCII characters.")
        if self.field == b"authorization" and " " not in text:
            text = f"Bearer {text}"
        return text.encode()


def from_settings(settings: Mapping[str, str]) -> Credentials:
    """
    Return credentials from strings by the names ``field``, ``value``, ``file`` and ``folder``.

    Raises:
        ValueError: One of them is not valid. The message begins with its name.
    """

    def path(name: str) -> Path | None:
        return Path(settings[name]) if settings.get(name) else None

    field = settings.get("field") or "Authorization"
    return Credentials(field, settings.get("value") or "", path("file"), path("folder"))
