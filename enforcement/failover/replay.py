"""
Replay to the store what was admitted without it, or could not be corrected in it.

Each batch is one call. Its id makes a second call harmless, so a batch stays in the journal until it surely worked.
"""

from __future__ import annotations

from collections.abc import Callable

from enforcement.failover.fallback import Fallback
from enforcement.failover.journal import JournalCharge, ReplayBatch
from enforcement.failover.lost_counters import LostCounters
from enforcement.model.keys import dirty_beside, marker_beside
from enforcement.plan import commands
from enforcement.plan.commands import REMEMBERED_MS
from enforcement.plan.reply import NOT_RESTORED, read_corrected
from enforcement.store import resp
from enforcement.store.connector import Pipe
from enforcement.store.errors import LibraryMissing, StoreError


class JournalReplay:
    """
    Replays the journal of one process.

    Args:
        fallback: Has the journal.
        pipe: A connection of its own, which is also used while the breaker is open.
        lost_counters: Durable counters that the store has lost. Those that are met here are added.
        now_us: Returns the store's time in microseconds, as far as it is known.
        clock: Returns the time of a test, or None.
        load_library: Loads the function library into the node of a counter that came back without it.
    """

    def __init__(
        self,
        fallback: Fallback,
        pipe: Pipe,
        lost_counters: LostCounters,
        now_us: Callable[[], int],
        clock: Callable[[], int] | None,
        load_library: Callable[[str], None],
    ) -> None:
        self._fallback = fallback
        self._pipe = pipe
        self._lost_counters = lost_counters
        self._now_us = now_us
        self._clock = clock
        self._load_library = load_library

    def run(self, ready: Callable[[str], bool]) -> bool:
        """Replay charges to counters that are *ready*, and return whether the store accepts them."""
        # The second time sends what the first one added, which are charges to overflow counters: see _send.
        return self._replay(ready) and self._replay(ready)

    def _replay(self, ready: Callable[[str], bool]) -> bool:
        for batch in self._fallback.batches(lambda charge: ready(charge.key) and not self._is_lost(charge)):
            try:
                accepted = self._send(batch)
            except LibraryMissing:
                self._load_library(batch.charges[0].key)
                return False
            except StoreError as exc:
                if exc.away:
                    return False
                if not exc.retryable:
                    # The store reads all counters of a call before it writes one, so no charge was made.
                    self._fallback.refused(batch)
            else:
                if accepted:
                    self._fallback.replayed(batch)
        return True

    def _send(self, batch: ReplayBatch) -> bool:
        """Send a batch to the store, and return whether the store still has its counters. Raises StoreError."""
        bounds = [charge.bound for charge in batch.charges]
        registered = sum(bound.partitions is not None for bound in bounds) or None
        arguments = commands.settle(
            batch.corrections(self._now_us()),
            marker_beside(batch.charges[0].key, batch.ident),
            self._clock and self._clock(),
            ident=batch.ident,
            once_for_ms=REMEMBERED_MS if batch.once else None,
        )
        if registered:
            arguments = commands.register_settle(arguments, bounds)
        reply, left_out = read_corrected(self._pipe.call(resp.pack(arguments)), registered)
        if reply == NOT_RESTORED:
            self._lost_counters.add(dirty_beside(bound.key) for bound in bounds if bound.durable)
            return False
        # The store leaves out values that had no room. They are charged to overflow counters.
        if any(left_out):
            self._fallback.divert(batch, left_out)
        return True

    def _is_lost(self, charge: JournalCharge) -> bool:
        return charge.bound.durable and self._lost_counters.lacks(charge.key)


__all__ = ["JournalReplay"]
