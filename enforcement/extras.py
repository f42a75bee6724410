"""Name the package to install if an import of an optional package fails."""

from __future__ import annotations

from types import TracebackType


class Requirement:
    """
    A block of imports that needs packages beyond those of the library alone.

    Args:
        what: What needs them, at the beginning of a sentence.
        install: What to install. In ``sluicegate[flask]`` the brackets name an extra.
    Raises:
        ModuleNotFoundError: A package is missing. The message says how to install it.
    """

    def __init__(self, what: str, install: str) -> None:
        self._what = what
        self._install = install

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ModuleNotFoundError):
            package = str(error.name).partition(".")[0]
            text = f"{self._what} needs the package {package}: pip install '{self._install}'"
            raise ModuleNotFoundError(text, name=error.name) from error
