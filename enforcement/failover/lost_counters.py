"""
Durable counters that the store has lost.

When they are restored, every process first replays its journal. Only after a grace period does it decide by them again,
because a process that did so sooner would not see what the others have not charged yet.
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
"""How often a process checks whether counters are restored."""
GRACE_SECONDS: Final = 2.0
"""Longer than any process takes to notice that the store is back, at most a second, and to replay its journal."""
BUDGET_SECONDS: Final = 0.05
"""For one check. There may be counters of thousands of projects, of which the next check takes others."""


class LostCounters:
    """
    Keeps the keys of the dirty sets whose counters the store has lost. There is one such set for each hash tag.

    Args:
        pipe: Reaches the store.

    Attributes:
        sets: The keys, which every decision reads. Requests add keys, and the background thread removes them.
    """

    def __init__(self, pipe: Pipe) -> None:
        self.sets: frozenset[str] = frozenset()
        self._pipe = pipe
        self._restored: dict[str, float] = {}

    def add(self, sets: Iterable[str]) -> None:
        """Add the counters of these sets to those that the store has lost."""
        known, self.sets = self.sets, self.sets | frozenset(sets)
        if not known and self.sets:
            logger.warning("The store lost durable counters; their limits are decided locally until they are restored.")

    def look(self, now: float) -> None:
        """Ask the store which lost counters are restored, and keep since when. *now* is in monotonic seconds."""
        for dirty in chance.sample(sorted(self.sets), len(self.sets)):
            if monotonic() > now + BUDGET_SECONDS:
                break
            if self._is_restored(dirty):
                self._restored.setdefault(dirty, now)
            else:
                self._restored.pop(dirty, None)

    def holds(self, counter: str) -> bool:
        """Return whether the counter of this key is among the lost ones, or was restored only lately."""
        return dirty_beside(counter) in self.sets

    def lacks(self, counter: str) -> bool:
        """Return whether the store still lacks this counter. Replaying charges to it would fail."""
        dirty = dirty_beside(counter)
        return dirty in self.sets and dirty not in self._restored

    def release(self, now: float, owed: Iterable[str]) -> None:
        """
        Remove the counters that were restored a grace period ago, and to which the journal has been replayed.

        Args:
            owed: Keys of the counters with charges in the journal.
        """
        done = frozenset(dirty for dirty, since in self._restored.items() if now - since >= GRACE_SECONDS)
        if done:
            done -= {dirty_beside(key) for key in list(owed)}
        self.sets -= done
        for dirty in done:
            del self._restored[dirty]
        if done and not self.sets:
            logger.warning("All durable counters are restored, and the store decides their limits again.")

    def _is_restored(self, dirty: str) -> bool:
        try:
            return bool(self._pipe.call(resp.pack(("SISMEMBER", dirty, WHOLE))))
        except StoreError:
            return False
