"""
Decide while the store is unavailable, by the rule of each limit.

With ``local``, this process admits its share of the quota. With ``allow`` it admits everything, and with ``deny``
nothing. What is admitted is added to the journal (:mod:`enforcement.failover.journal`). When the store is back, it is
charged to the windows that it belonged to. The breaker (:mod:`enforcement.store.breaker`) decides when that is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from enforcement.failover.in_doubt import InDoubtCalls
from enforcement.failover.journal import Journal, JournalCharge, Ready, ReplayBatch
from enforcement.failover.latest_replies import Known
from enforcement.failover.partition_values import LocalValues
from enforcement.failover.saved_counter import SavedCounter
from enforcement.failover.shares import LocalShares
from enforcement.failover.slots import UnreportedSlots
from enforcement.model.algorithms import NEVER
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.reply import MARKED, Reply
from enforcement.plan.request import Request
from enforcement.store.errors import StoreError

if TYPE_CHECKING:
    from enforcement.plan.records import RecordKeys


class Fallback:
    """
    Decides in this process, and keeps what has to be replayed to the store.

    Any thread may call it. One lock protects all of its parts.

    Args:
        held: Returns the slots of a counter that open reservations of this process hold, by the id of the reservation.

    Attributes:
        journal: The charges to replay.
        in_doubt: The calls that the store may have executed without a reply.
        owed: Has the keys of the counters with charges in the journal. Decisions read it without a lock.
    """

    def __init__(self, held: Callable[[str], Mapping[str, int]]) -> None:
        self._held = held
        self._begin()

    def _begin(self) -> None:
        self.journal = Journal()
        self.in_doubt = InDoubtCalls(self.journal.add)
        self._shares = LocalShares(self._held)
        self._slots = UnreportedSlots(self._held)
        self._values = LocalValues()
        self._lock = threading.Lock()
        self.owed = self.journal.owed

    def after_fork(self) -> None:
        """
        Drop the counters, charges and slots that a child process has inherited. Its parent replays its own journal, and
        another thread may hold the lock.
        """
        self._begin()

    # Decisions.

    def decide(
        self,
        request: Request[Plan],
        known: Sequence[Known | None],
        now_us: int,
        fleet: int,
        *,
        error: StoreError | None = None,
    ) -> tuple[Reply, str]:
        """
        Decide a request in this process, and return a reply in the form of the store's with marks, and the reason.

        Args:
            known: What the store said last about each counter, or None.
            now_us: The store's time in microseconds, as far as it is known.
            fleet: Instances that share the quotas, at least 1.
            error: The call that failed, which the store may have executed nevertheless. None if there was no call.
        """
        bounds = request.plan.bounds
        costs = [bound.cost_of(request.costs) for bound in bounds]
        refusing = [i for i, bound in enumerate(bounds) if _refuses(bound, costs[i])]
        charge = request.charge and not refusing
        with self._lock:
            numbers = self._shares.decide(request, costs, known, now_us, fleet, charge=charge)
            reply = _by_rules(numbers, bounds, refusing)
            if charge and reply.passed:
                self._record(request, reply, error)
            elif error is not None:
                if error.late is not None:
                    error.late.close()  # nothing depends on its late reply
                if request.charge and error.executed:
                    self.journal.add_batches(_untaken(request))
        return reply, "degraded_denied" if refusing else reply.reason(bounds)

    def overflowed(self, plan: Plan) -> list[int]:
        """Register the unregistered values of a plan in this process, and return 1 for each that has no room, or 0."""
        with self._lock:
            return [self._values.register(plan.bounds[i]) for i in plan.unregistered]

    def amend(self, bound: BoundLimit, delta: int, mark: int, now_us: int, *, owed: bool = True) -> None:
        """Correct a charge in this process now, and if it is *owed*, in the store when it is back."""
        with self._lock:
            self._shares.amend(bound, delta, mark, now_us)
            if owed:
                self.journal.add(JournalCharge(bound.key, bound, mark, delta))

    def owes_to(self, bound: BoundLimit) -> bool:
        """
        Return whether the store still lacks charges to this counter.

        What is given back meanwhile must follow them, as the store would find nothing to give back.
        """
        if not self.journal:
            return False
        with self._lock:
            return self.journal.holds(bound.key)

    def forget(self, keys: Sequence[str]) -> None:
        """Delete this process's counters of keys that were reset in the store."""
        with self._lock:
            self._shares.forget(keys)

    def rest(self, ready: Callable[[str], bool]) -> None:
        """
        Mark the keys that are *ready* as counted by the store again, and delete their slots in this process.

        The journal stays until it is replayed.
        """
        with self._lock:
            self._shares.rest(ready)
            if not self._shares.in_use():
                self._values.clear()

    def __len__(self) -> int:
        """Return the number of counters in this process."""
        return len(self._shares)

    # For the copy on disk.

    @property
    def changes(self) -> int:
        """A number that increases whenever a local counter may have changed."""
        return self._shares.changes

    def saved(self) -> Iterator[SavedCounter]:
        """Yield the local counters in the form in which they are kept on disk."""
        with self._lock:
            rows = self._shares.counters()
        for key, counter in rows:
            yield SavedCounter.of(key, counter)

    def restore(self, saved: Sequence[SavedCounter]) -> None:
        """
        Add the local counters of an earlier process that this one lacks, so that what it has admitted still counts.
        """
        with self._lock:
            self._shares.restore(saved)

    # Slots.

    def holds(self, ident: str, key: str) -> bool:
        """Return whether this process gave slots to this id, and the store does not know of them."""
        return self._slots.holds(ident, key)

    def leave(self, ident: str, bound: BoundLimit, count: int, now_us: int) -> bool:
        """Free slots in this process, and return whether the store does not know of them."""
        with self._lock:
            self._shares.free(ident, bound, count, now_us)
            return self._slots.free(ident, bound.key)

    def renew(self, ident: str, bound: BoundLimit, count: int, now_us: int) -> None:
        """Renew slots in this process, and report them to the store later, which may have forgotten them by then."""
        with self._lock:
            self._shares.renew(ident, bound, count, now_us)
            self._slots.renew(ident, bound, count)

    # Charges to be replayed.

    def owes(self) -> bool:
        """Return whether there is anything to replay or to report to the store."""
        return bool(self.journal or self.in_doubt or self._slots)

    def owe(
        self,
        ident: str,
        rows: Iterable[tuple[BoundLimit, int, int]],
        *,
        once: bool,
        where: RecordKeys | None = None,
        open_at_us: int | None = None,
    ) -> None:
        """
        Add to the journal, as one batch, a correction that could not be sent.

        Args:
            ident: The id of the correction.
            rows: For each counter its bound, the mark of the charge and the permits to add.
            once: Whether the store has to remember the id, so that a second call changes nothing.
            where: Where the reservation that is settled is recorded. None: nowhere.
            open_at_us: See :class:`~enforcement.failover.journal.ReplayBatch`.
        """
        charges = tuple(JournalCharge(bound.key, bound, mark, permits) for bound, mark, permits in rows)
        with self._lock:
            self.journal.add_batch(ReplayBatch(ident, charges, once, where, open_at_us))

    def batches(
        self, ready: Ready = lambda charge: True, most: int | None = None, *, together: bool = False
    ) -> list[ReplayBatch]:
        """
        Settle calls in doubt, and return one list of the batches of charges and of slots that can be sent now.

        The arguments are those of :meth:`Journal.batches`. Slots come first and all at once, as they are held now.
        """
        with self._lock:
            self.in_doubt.resolve(ready)
            return self._slots.batches(ready) + self.journal.batches(ready, most, together=together)

    def batches_of(self, keys: Sequence[str], *, together: bool) -> list[ReplayBatch]:
        """Put the charges of these counters into new batches, and return all theirs. See :meth:`Journal.batches_of`."""
        with self._lock:
            return self.journal.batches_of(keys, together=together)

    def replayed(self, batch: ReplayBatch, overflowed: Sequence[int] = ()) -> None:
        """
        Drop a batch that the store has accepted, and journal what it left out for the overflow counters.

        Args:
            overflowed: For each unregistered value in the batch 1 if the store had no room for it, or 0. What the store
                left out is added to the overflow counters of its limits.
        """
        with self._lock:
            if batch.reports_slots:
                self.journal.add_batches(self._slots.reported(batch))
            elif self.journal.remove(batch) and any(overflowed):
                self._divert(batch, overflowed)

    def perhaps_replayed(self, batch: ReplayBatch) -> None:
        """Keep in mind that the store may have taken the slots of a batch, the reply to which was lost."""
        if batch.reports_slots:
            with self._lock:
                self.journal.add_batches(self._slots.perhaps_reported(batch))

    def refused(self, batch: ReplayBatch) -> None:
        """
        Split a batch of several charges that the store could not read, and drop any other. See :meth:`Journal.refused`.
        """
        with self._lock:
            if batch.reports_slots:
                self.journal.add_batches(self._slots.reported(batch))
            else:
                self.journal.refused(batch)

    def _divert(self, batch: ReplayBatch, overflowed: Sequence[int]) -> None:
        # Slots are not added there, as they are freed where they were taken.
        unregistered = [charge for charge in batch.charges if charge.bound.partitions is not None]
        for charge, overflows in zip(unregistered, overflowed, strict=True):
            if overflows and charge.bound.letter != "c":
                bound = charge.bound.overflowing()
                self.journal.add(JournalCharge(bound.key, bound, charge.mark, charge.permits))

    def _record(self, request: Request[Plan], reply: Reply, error: StoreError | None) -> None:
        charges = []
        for i, bound in reply.charged(request.plan.bounds):
            cost = bound.cost_of(request.costs)
            if not cost:
                continue
            charge = JournalCharge(bound.key, bound, reply.mark(i), cost)
            if bound.letter != "c":
                charges.append(charge)
            elif request.ident:
                self._slots.add(request.ident, charge)
        if error is None or not error.charges:
            for charge in charges:
                self.journal.add(charge)
        elif error.late is not None:
            self.in_doubt.add(error.late, charges)


def _untaken(request: Request[Plan]) -> list[ReplayBatch]:
    """Return a batch that frees the slots which the store may have given to a denied request, if there may be any."""
    bounds = request.plan.bounds if request.ident else ()
    slots = [(bound, bound.cost_of(request.costs)) for bound in bounds if bound.letter == "c"]
    charges = tuple(JournalCharge(bound.key, bound, 0, -cost) for bound, cost in slots if cost)
    return [ReplayBatch(request.ident, charges, once=False)] if charges else []


def _by_rules(numbers: list[int], bounds: Sequence[BoundLimit], refusing: Sequence[int]) -> Reply:
    """Apply the rules ``allow`` and ``deny`` to the *numbers* that were counted here, and return a reply with them."""
    for i, bound in enumerate(bounds):
        if bound.limit.on_store_failure == "allow":
            numbers[4 + MARKED * i] = 0
    for i in refusing:
        numbers[0], numbers[4 + MARKED * i] = 0, NEVER
    return Reply(numbers, MARKED)


def _refuses(bound: BoundLimit, cost: int) -> bool:
    return cost > 0 and bound.limit.on_store_failure == "deny" and not bound.limit.shadow
