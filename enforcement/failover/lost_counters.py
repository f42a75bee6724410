"""
Durable counters that the store has lost, as one process found out, until it may trust the store with them again.

When they are back, every process first pays what it admitted meanwhile, and only then, a grace later, asks the store
again: one that asked sooner would be told what others have not charged yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic
from typing import Final

from enforcement.model.keys import WHOLE, dirty_beside
from enforcement.store import resp
from enforcement.store.breaker import chance
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

logger = logging.getLogger("sluicegate.failover")

LOOK_SECONDS: Final = 0.25
"""How often a process looks whether counters are back."""
GRACE_SECONDS: Final = 2.0
"""Longer than any process takes to find the store again, which it looks for every second at the latest, and to pay."""
BUDGET_SECONDS: Final = 0.05
"""For one look. There may be the counters of thousands of projects: the next look asks for others."""


class LostCounters:
    """
    The dirty sets beside the counters that are lost.

    Args:
        pipe: To ask with.

    Attributes:
        sets: Read by every decision. Requests add, the background takes away.
    """

    def __init__(self, pipe: Pipe) -> None:
        self.sets: frozenset[str] = frozenset()
        self._pipe = pipe
        self._back: dict[str, float] = {}

    def add(self, sets: Iterable[str]) -> None:
        """Note that the store said so."""
        known, self.sets = self.sets, self.sets | frozenset(sets)
        if not known and self.sets:
            logger.warning("The store lost durable counters; their limits are decided here until it has them back.")

    def look(self, now: float) -> None:
        """Ask which are back; *now* is in monotonic seconds."""
        for dirty in chance.sample(sorted(self.sets), len(self.sets)):
            if monotonic() > now + BUDGET_SECONDS:
                break
            if self._is_back(dirty):
                self._back.setdefault(dirty, now)
            else:
                self._back.pop(dirty, None)

    def holds(self, counter: str) -> bool:
        """Tell whether a counter's key has its set among them."""
        return dirty_beside(counter) in self.sets

    def lacks(self, counter: str) -> bool:
        """Tell whether the store has not got this counter back, as far as is known: in vain would be paid to it."""
        dirty = dirty_beside(counter)
        return dirty in self.sets and dirty not in self._back

    def release(self, now: float) -> None:
        """Trust the store again with what has been back for the grace, and was paid to."""
        done = frozenset(dirty for dirty, since in self._back.items() if now - since >= GRACE_SECONDS)
        self.sets -= done
        for dirty in done:
            del self._back[dirty]
        if done and not self.sets:
            logger.warning("The store has all durable counters back and decides their limits again.")

    def _is_back(self, dirty: str) -> bool:
        try:
            return bool(self._pipe.call(resp.pack(("SISMEMBER", dirty, WHOLE))))
        except StoreError:
            return False


__all__ = ["LOOK_SECONDS", "LostCounters"]
