"""The output of the demo, and the results of its checks."""

from __future__ import annotations

from collections.abc import Callable


class Reporter:
    """
    A printer of numbered steps with their checks, which counts the checks.

    Args:
        line: The function that prints one line.
        encoding: The encoding of the output. If it lacks the marks, they are replaced by words.
        good, bad: The functions that colour a mark.

    Attributes:
        passed: Whether all checks passed, or None before ``summarize()``.
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
        passed, failed = ("✓", "✗") if _can_print("✓✗", encoding) else ("ok", "FAILED")
        self._marks = {True: good(passed), False: bad(failed)}
        self._steps = 0
        self._checks = 0
        self._failed: list[str] = []

    def step(self, title: str) -> None:
        """Print the title of the next step."""
        self._steps += 1
        self.line("")
        self.line(f"{self._steps}  {title}")

    def note(self, text: str) -> None:
        """Print a line that is not a check."""
        self.line(f"     {text}".rstrip())

    def check(self, passed: bool, text: str) -> None:
        """Print a check with its result, and add it to the summary."""
        self._checks += 1
        if not passed:
            self._failed.append(text)
        self.line(f"   {self._marks[passed]} {text}")

    def summarize(self) -> bool:
        """Print the number of checks and those that failed, and return whether all passed."""
        self.passed = not self._failed
        self.line("")
        if self.passed:
            self.line(f"All {self._checks} checks passed.")
        else:
            self.line(f"{len(self._failed)} of {self._checks} checks failed:")
        for text in self._failed:
            self.line(f"   {self._marks[False]} {text}")
        return self.passed


def _can_print(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
