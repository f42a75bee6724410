"""The values of a file with their places, so that each error names the place of the value that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

Path = tuple[str | int, ...]

MAX_BYTES: Final = 8 * 1_048_576


class InvalidFile(ValueError):
    """
    A file that breaks a rule.

    Attributes:
        file: Its name.
        line: The line with the error, from 1.
        path: The value that is wrong. Empty for the whole file.
        reason: The rule that it breaks, as a sentence.
    """

    def __init__(self, file: str, line: int, path: Path, reason: str) -> None:
        self.file, self.line, self.path, self.reason = file, line, path, reason
        super().__init__(f"{file}:{line}: {self.field}: {reason}" if path else f"{file}:{line}: {reason}")

    @property
    def field(self) -> str:
        """The path as a person writes it, such as ``policies[0].limits[1].quota``."""
        return shown_path(self.path)


class InvalidFiles(ValueError):
    """Everything that is wrong in some files. Its ``errors`` are in the order of their lines."""

    def __init__(self, errors: Iterable[InvalidFile]) -> None:
        self.errors = sorted(errors, key=lambda error: error.line)
        super().__init__("\n".join(map(str, self.errors)))


@dataclass(slots=True)
class FileSource:
    """
    The values of a file, and where they are.

    Attributes:
        name: The name of the file.
        values: What the file has, as JSON values.
        lines: The line of each value by its path. Empty for a file that has no lines.
    """

    name: str
    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)

    def error(self, path: Path, reason: str) -> InvalidFile:
        """Return the error of the value at a path, with the line of the nearest value above it that is in the file."""
        found = path
        while found not in self.lines and found:
            found = found[:-1]
        return InvalidFile(self.name, self.lines.get(found, 1), path, reason)


def shown_path(path: Path) -> str:
    """Return a path as a person writes it, such as ``policies[0].slug``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
