"""Count the decisions and failures of this process where they happen."""

from __future__ import annotations

Cell = list[int]
"""A count that a decision increases in place with ``cell[0] += 1``."""


class DecisionCounts:
    """
    The counts since the process began. Any thread may count and read.

    Attributes:
        failures: Calls to the store without a usable reply, by cause (see ``StoreError``).
    """

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}
        self._cells: dict[tuple[str, str], Cell] = {}

    def cell(self, source: str, reason: str) -> Cell:
        """
        Return the cell, a list of one number, that counts decisions with one source and reason. Keep it where it is
        increased often.
        """
        return self._cells.setdefault((source, reason), [0])

    def count(self, source: str, reason: str) -> None:
        """Add 1 to the count of a source and reason, where looking up the cell is fast enough."""
        self.cell(source, reason)[0] += 1

    def failed(self, cause: str) -> None:
        """Add 1 to the count of failed calls with this cause."""
        self.failures[cause] = self.failures.get(cause, 0) + 1

    def after_fork(self) -> None:
        """Set all counts to 0 in a child process, because the parent reports what was counted before."""
        self.failures = {}
        for cell in self._cells.values():
            cell[0] = 0

    def decisions(self) -> dict[tuple[str, str], int]:
        """Return the number of decisions by source and reason as a new dictionary, without those that are 0."""
        return {name: cell[0] for name, cell in sorted(self._cells.copy().items()) if cell[0]}
