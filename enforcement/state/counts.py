"""What was decided and what failed in this process, counted where it happens."""

from __future__ import annotations

Cell = list[int]
"""A count that its holder raises in place: ``cell[0] += 1`` is all that a decision pays."""


class DecisionCounts:
    """
    Counts since the process began. Any thread may count and read.

    Attributes:
        failures: Calls to the store that gave no usable answer, by cause (see ``StoreError``).
    """

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self._cells: dict[tuple[str, str], Cell] = {}

    def cell(self, source: str, reason: str) -> Cell:
        """Return the count of the decisions of one source and reason; hold it where it is raised often."""
        return self._cells.setdefault((source, reason), [0])

    def count(self, source: str, reason: str) -> None:
        """Count a decision that is rare, or slow for another cause."""
        self.cell(source, reason)[0] += 1

    def failed(self, cause: str) -> None:
        """Count a failed call."""
        self.failures[cause] = self.failures.get(cause, 0) + 1

    def after_fork(self) -> None:
        """Begin anew in a child process: what was counted before is the parent's to tell."""
        self.failures = {}
        for cell in self._cells.values():
            cell[0] = 0

    def decisions(self) -> dict[tuple[str, str], int]:
        """Return how many decisions there were, by source and reason."""
        return {name: cell[0] for name, cell in sorted(self._cells.copy().items()) if cell[0]}
