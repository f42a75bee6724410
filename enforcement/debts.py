"""
Paying what was admitted without the store, or could not be corrected in it, when it counts again.

Each debt is one call of one hash tag. Its id makes a second sending harmless, so what is not surely paid stays owed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from enforcement import protocol, resp
from enforcement.errors import LibraryMissing, StoreTrouble
from enforcement.keys import dirty_beside, marker_beside
from enforcement.protocol import REMEMBERED_MS

if TYPE_CHECKING:
    from enforcement.failover import Fallback
    from enforcement.journal import Entry
    from enforcement.place import Pipe
    from enforcement.unrestored import Unrestored


class Payer:
    """
    Pays what the fallback of one process owes.

    Args:
        pipe: A connection of its own, which also reaches a store that is taken to be away.
        unrestored: Which sets of durable counters the store has not got back; told of each that is met.
        now_us: The best idea of the store's time, microseconds.
        clock: A test's, or None.
        load_library: Loads the function library into the node of a counter that came back without it.
    """

    def __init__(
        self,
        fallback: Fallback,
        pipe: Pipe,
        unrestored: Unrestored,
        now_us: Callable[[], int],
        clock: Callable[[], int] | None,
        load_library: Callable[[str], None],
    ) -> None:
        self._fallback = fallback
        self._pipe = pipe
        self._unrestored = unrestored
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
            arguments = protocol.settle(corrections, marker, now_us, ident=debt.ident, once_for_ms=once_for_ms)
            enrols = any(entry.bound.census for entry in debt.entries)
            if enrols:
                arguments = protocol.enrol_settle(arguments, [entry.bound for entry in debt.entries])
            try:
                reply = self._pipe.call(resp.pack(arguments))
                if (reply[0] if enrols else reply) == protocol.NOT_RESTORED:
                    self._unrestored.add(dirty_beside(entry.key) for entry in debt.entries if entry.bound.durable)
                    continue
                if enrols:
                    self._fallback.divert(debt, reply[1:])
            except LibraryMissing:
                self._load_library(debt.entries[0].key)
                return False
            except StoreTrouble as exc:
                if exc.away:
                    return False
                if exc.retryable:
                    continue
                # All counters are read before one is written: who shall not lose what he is owed is paid without it.
                self._fallback.refused(debt)
                continue
            self._fallback.paid(debt)
        return True

    def _lost(self, entry: Entry) -> bool:
        """Tell whether the store is known to wait for this counter itself."""
        return entry.bound.durable and self._unrestored.lacks(entry.key)


__all__ = ["Payer"]
