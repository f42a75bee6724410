"""
Paying what was admitted without the store, or could not be corrected in it, when it counts again.

Each debt is one call of one hash tag. Its id makes a second sending harmless, so what is not surely paid stays owed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from enforcement.model.keys import dirty_beside, marker_beside
from enforcement.plan import commands
from enforcement.plan.commands import REMEMBERED_MS
from enforcement.store import resp
from enforcement.store.errors import LibraryMissing, StoreError

if TYPE_CHECKING:
    from enforcement.failover.fallback import Fallback
    from enforcement.failover.journal import JournalCharge
    from enforcement.failover.lost_counters import LostCounters
    from enforcement.store.connector import Pipe


class JournalReplay:
    """
    Pays what the fallback of one process owes.

    Args:
        pipe: A connection of its own, which also reaches a store that is taken to be away.
        lost_counters: Which sets of durable counters the store has not got back; told of each that is met.
        now_us: The best idea of the store's time, microseconds.
        clock: A test's, or None.
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

    def pay(self, ready: Callable[[str], bool]) -> bool:
        """Pay what is owed to counters that are ready. False: the store does not take it."""
        # Twice: what the store leaves out of a debt, for its values found no place, is then owed to overflow counters.
        return self._pay_debts(ready) and self._pay_debts(ready)

    def _pay_debts(self, ready: Callable[[str], bool]) -> bool:
        """Pay once, but for debts to counters that are not restored yet, or on the move; False as above."""
        for debt in self._fallback.debts(lambda entry: ready(entry.key) and not self._lost(entry)):
            marker = marker_beside(debt.entries[0].key, debt.ident)
            corrections = debt.corrections(self._now_us())
            once_for_ms = REMEMBERED_MS if debt.once else None
            now_us = self._clock and self._clock()
            arguments = commands.settle(corrections, marker, now_us, ident=debt.ident, once_for_ms=once_for_ms)
            registers = any(entry.bound.census for entry in debt.entries)
            if registers:
                arguments = commands.register_settle(arguments, [entry.bound for entry in debt.entries])
            try:
                reply = self._pipe.call(resp.pack(arguments))
                if (reply[0] if registers else reply) == commands.NOT_RESTORED:
                    self._lost_counters.add(dirty_beside(entry.key) for entry in debt.entries if entry.bound.durable)
                    continue
                if registers:
                    self._fallback.divert(debt, reply[1:])
            except LibraryMissing:
                self._load_library(debt.entries[0].key)
                return False
            except StoreError as exc:
                if exc.away:
                    return False
                if exc.retryable:
                    continue
                # All counters are read before one is written: who shall not lose what he is owed is paid without it.
                self._fallback.refused(debt)
                continue
            self._fallback.paid(debt)
        return True

    def _lost(self, entry: JournalCharge) -> bool:
        """Tell whether the store is known to wait for this counter itself."""
        return entry.bound.durable and self._lost_counters.lacks(entry.key)


__all__ = ["JournalReplay"]
