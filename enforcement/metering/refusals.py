"""
Count which fields of requests a bound refuses, and which it would refuse of requests under typical estimates.

Clients choose the names of fields, so at most 200 names are told apart. Of requests under typical estimates only some
are looked at, because a look takes longer than all else that is done for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

MAX_FIELDS: Final = 200
"""Names of fields that are told apart within a day. All others count as :data:`OTHER`."""
MAX_NAME_LENGTH: Final = 100
OTHER: Final = "other"
DAYS: Final = 7
SAMPLE: Final = 64
"""One of so many requests under typical estimates is looked at, after the first so many of a day."""
_DAY_US: Final = 86_400_000_000

Counts = dict[str, int]


class FieldRefusals:
    """
    The refusals of one process by field. Any thread may count.

    Attributes:
        total: Requests that were refused for a field since the process began, by the name of the field.
    """

    def __init__(self) -> None:
        self.total: Counts = {}
        self._lock = threading.Lock()
        self._days: deque[tuple[int, Counts, Counts]] = deque(maxlen=DAYS)
        self._seen = 0

    def refused(self, field: str, at_us: int) -> None:
        """Count a request that was refused for a field, at an instant in microseconds since the epoch."""
        with self._lock:
            _count(self.total, field, 1)
            _count(self._today(at_us)[1], field, 1)

    def is_next(self, at_us: int) -> bool:
        """Return whether to look at a request under typical estimates."""
        self._seen += 1
        if self._seen % SAMPLE == 0:
            return True
        if self._seen > SAMPLE and self._days and self._days[-1][0] == at_us // _DAY_US:
            return False
        with self._lock:
            self._today(at_us)
        return self._seen <= SAMPLE

    def would_refuse(self, field: str, at_us: int) -> None:
        """Count a request that was looked at and would be refused for a field, for all that it stands for."""
        with self._lock:
            _count(self._today(at_us)[2], field, 1 if self._seen <= SAMPLE else SAMPLE)

    def recent(self, at_us: int, at_most: int = 20) -> dict[str, list[tuple[str, int]]]:
        """
        Return the fields of the last seven days with their counts, the most frequent first.

        Returns:
            Those of refused requests under ``refused``, and of those that would be refused under ``would_refuse``. A
            list that is empty is left out.
        """
        with self._lock:
            return _ranked([day for day in self._days if at_us // _DAY_US - day[0] < DAYS], at_most)

    def by_day(self, at_us: int, at_most: int = 20) -> dict[str, dict[str, list[tuple[str, int]]]]:
        """Return the same of today and of the day before, by the number of the day since the epoch."""
        with self._lock:
            return {str(day[0]): _ranked([day], at_most) for day in self._days if at_us // _DAY_US - day[0] < 2}

    def _today(self, at_us: int) -> tuple[int, Counts, Counts]:
        """Return the counts of a day. The caller holds the lock."""
        day = at_us // _DAY_US
        if not self._days or self._days[-1][0] < day:
            self._days.append((day, {}, {}))
            self._seen = min(self._seen, 1)
        return self._days[-1]


def _count(counts: Counts, field: str, times: int) -> None:
    name = "".join(char if char.isprintable() else "?" for char in field[:MAX_NAME_LENGTH])
    if name not in counts and len(counts) >= MAX_FIELDS:
        name = OTHER
    counts[name] = counts.get(name, 0) + times


def _ranked(days: list[tuple[int, Counts, Counts]], at_most: int) -> dict[str, list[tuple[str, int]]]:
    """Return the counts of days, see :meth:`FieldRefusals.recent`."""
    found = {"refused": _sum(day[1] for day in days), "would_refuse": _sum(day[2] for day in days)}
    ranked = {name: sorted(counts.items(), key=lambda item: (-item[1], item[0])) for name, counts in found.items()}
    return {name: rows[:at_most] for name, rows in ranked.items() if rows}


def _sum(days: Iterable[Counts]) -> Counts:
    result: Counts = {}
    for counts in days:
        for name, count in counts.items():
            result[name] = result.get(name, 0) + count
    return result
