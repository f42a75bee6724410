"""
Replay to the store what was admitted without it, or could not be corrected in it.

Each batch is one call. Its id makes a second call harmless, so a batch stays in the journal until it surely worked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from enforcement.failover.fallback import Fallback
from enforcement.failover.journal import JournalCharge, ReplayBatch
from enforcement.failover.lost_counters import LostCounters
from enforcement.model.keys import dirty_beside, marker_beside
from enforcement.plan import commands
from enforcement.plan.commands import REMEMBERED_MS
from enforcement.plan.reply import IS_LOST, NOT_RESTORED, OUTSIDE_CALENDAR, read_corrected
from enforcement.store import resp
from enforcement.store.connector import Pipe
from enforcement.store.errors import LibraryMissing, StoreError

PERIOD_SECONDS: Final = 0.25
FIRST_SECOND: Final = 1.0
FIRST_CHARGES: Final = 2
GROWTH: Final = 1.5
MOST_CHARGES: Final = 500
"""At most this many charges are replayed in a period. It takes the store about 2 ms to execute them."""


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
        together: Whether one call reaches counters of different hash tags.
    """

    def __init__(
        self,
        fallback: Fallback,
        pipe: Pipe,
        lost_counters: LostCounters,
        now_us: Callable[[], int],
        clock: Callable[[], int] | None,
        load_library: Callable[[str], None],
        *,
        together: bool,
    ) -> None:
        self._fallback = fallback
        self._pipe = pipe
        self._lost_counters = lost_counters
        self._now_us = now_us
        self._clock = clock
        self._load_library = load_library
        self._together = together

    def run(self, ready: Callable[[str], bool], most: int | None = None) -> bool:
        """
        Replay charges to counters that are *ready*, and return whether the store accepts them.

        Args:
            most: About how many charges to replay. None: all of them.
        """
        # The second time sends what the first one added, which are charges to overflow counters: see accepted().
        return self._replay(ready, most) and (most is not None or self._replay(ready, None))

    def _replay(self, ready: Callable[[str], bool], most: int | None) -> bool:
        def sendable(charge: JournalCharge) -> bool:
            return ready(charge.key) and not self._is_lost(charge)

        for batch in self._fallback.batches(sendable, most, together=self._together):
            try:
                self._send(batch)
            except StoreError as exc:
                if exc.executed:
                    self._fallback.perhaps_replayed(batch)
                if exc.away:
                    return False
                self.refused(batch, exc)
        return True

    def _send(self, batch: ReplayBatch) -> None:
        """Replay a batch, and load the functions before that if the store lacks them."""
        try:
            reply = self._pipe.call(self.command(batch))
        except LibraryMissing:
            # A limiter that is being closed does not come back later.
            self._load_library(batch.charges[0].key)
            reply = self._pipe.call(self.command(batch))
        self.accepted(batch, reply)

    def owed_to(self, keys: Sequence[str]) -> list[ReplayBatch]:
        """
        Put what is owed to these counters into batches, and return all batches to replay before a decision on them.
        """
        return self._fallback.batches_of(keys, together=self._together)

    def command(self, batch: ReplayBatch) -> bytes:
        """Return the encoded call that replays a batch."""
        bounds = [charge.bound for charge in batch.charges]
        registered = _registered(batch)
        arguments = commands.settle(
            batch.corrections(self._now_us()),
            marker_beside(batch.charges[0].key, batch.ident),
            self._clock and self._clock(),
            ident=batch.ident,
            once_for_ms=REMEMBERED_MS if batch.once else None,
        )
        if batch.where is not None:
            from enforcement.plan.records import conclude  # most processes record nothing

            arguments = conclude(batch.where, arguments, batch.open_at_us)
        elif registered:
            arguments = commands.register_settle(arguments, bounds)
        return resp.pack(arguments)

    def accepted(self, batch: ReplayBatch, raw: object) -> bool:
        """
        Drop a batch that was accepted and return True, or keep it and return False if the store lost its counters.

        One whose calendar windows do not contain the store's time stays, too, until a later call has the right ones.
        Decisions do not wait for that.
        """
        reply, left_out = read_corrected(raw, _registered(batch))
        if reply == OUTSIDE_CALENDAR:
            return True
        if reply == NOT_RESTORED:
            self._lost_counters.add(dirty_beside(c.key) for c in batch.charges if c.bound.durable)
            return False
        self._fallback.replayed(batch, left_out)
        slots = [(c.bound, c.mark, c.permits) for c in batch.charges if c.bound.letter == "c"]
        if reply == IS_LOST and slots:  # it keeps its charge, and its request has ended all the same
            self._fallback.owe(batch.ident, slots, once=False)
        return True

    def refused(self, batch: ReplayBatch, exc: StoreError) -> None:
        """
        Split a batch that the store refused into single charges, or drop its only one, unless a retry may succeed.
        """
        if not exc.retryable:
            # The store reads all counters of a call before it writes one, so no charge was made.
            self._fallback.refused(batch)

    def _is_lost(self, charge: JournalCharge) -> bool:
        return charge.bound.durable and self._lost_counters.lacks(charge.key)


class ReplayPace:
    """
    Bounds how many charges a process replays beside its traffic.

    A fleet that returns in one moment would otherwise send everything in one moment. So each process begins with a few
    charges, and sends more in each period, as long as anything is owed.
    """

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._period = self._asked = 0

    def grant(self, now: float) -> int:
        """Return how many charges to replay at *now*, in monotonic seconds, or 0 if this period had its share."""
        if self._began_at is None:
            self._began_at, self._period = now, -1
        period = int((now - self._began_at) / PERIOD_SECONDS)
        if period <= self._period:
            return 0
        self._period = period
        return min(MOST_CHARGES, int(FIRST_CHARGES * GROWTH ** min(period, 20)))

    def admits(self, now: float) -> bool:
        """
        Return whether a decision may replay at *now* what its counters are owed, and may then ask the store.

        In the first second after a return only every other one may, as such a decision costs the store more than twice
        as much as another one.
        """
        if self._began_at is None or now - self._began_at > FIRST_SECOND:
            return True
        self._asked += 1
        return self._asked % 2 == 1

    def rest(self) -> None:
        """Begin with a few charges the next time."""
        self._began_at = None


def _registered(batch: ReplayBatch) -> int | None:
    if batch.where is not None:  # it was registered when it was charged
        return None
    return sum(charge.bound.partitions is not None for charge in batch.charges) or None
