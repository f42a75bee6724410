"""What the demo says, and whether what it promised came true."""

from __future__ import annotations

from collections.abc import Callable


class Reporter:
    """
    Tells a story in numbered chapters, and keeps count of the checks in it.

    Args:
        line: Prints one line.
        encoding: Of where the lines go; marks are spelled in letters where it has no others.
        good, bad: Put colour around a mark.

    Attributes:
        held: Whether all checks held; None before the sum is drawn.
    """

    def __init__(
        self,
        line: Callable[[str], object],
        encoding: str = "utf-8",
        good: Callable[[str], str] = str,
        bad: Callable[[str], str] = str,
    ) -> None:
        self.line = line
        self.passed: bool | None = None
        held, failed = ("✓", "✗") if _can_print("✓✗", encoding) else ("ok", "FAILED")
        self._marks = {True: good(held), False: bad(failed)}
        self._chapters = 0
        self._checks = 0
        self._failed: list[str] = []

    def step(self, title: str) -> None:
        """Begin the next of the numbered proofs."""
        self._chapters += 1
        self.line("")
        self.line(f"{self._chapters}  {title}")

    def note(self, text: str) -> None:
        """Print a line that proves nothing."""
        self.line(f"     {text}".rstrip())

    def check(self, held: bool, text: str) -> None:
        """Print what was to be proved, and whether it held."""
        self._checks += 1
        if not held:
            self._failed.append(text)
        self.line(f"   {self._marks[held]} {text}")

    def summarize(self) -> bool:
        """Draw the sum; return whether every check held."""
        self.passed = not self._failed
        self.line("")
        if self.passed:
            self.line(f"All {self._checks} checks held.")
        else:
            self.line(f"{len(self._failed)} of {self._checks} checks did not hold:")
        for text in self._failed:
            self.line(f"   {self._marks[False]} {text}")
        return self.passed


def _can_print(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
