"""Values of partitions that this process met while the store was unavailable."""

from __future__ import annotations

from typing import Final

from enforcement.plan.binding import BoundLimit

MAX_VALUES: Final = 50_000


class LocalValues:
    """
    Registers values of partitions in this process.

    The caller holds a lock.
    """

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}  # by the key of their partition
        self._count = 0

    def register(self, bound: BoundLimit) -> int:
        """Register the value of a counter, and return 0, or 1 if there is no room and its overflow counter is used."""
        census = bound.partitions
        assert census is not None
        values = self._values.setdefault(census.key, set())
        if bound.value in values:
            return 0
        if len(values) >= census.cap or self._count >= MAX_VALUES:
            return 1
        values.add(bound.value)
        self._count += 1
        return 0

    def clear(self) -> None:
        """Remove all registered values."""
        self._values.clear()
        self._count = 0
