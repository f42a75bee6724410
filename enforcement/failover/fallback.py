"""
Deciding while the store is away, by each limit's own rule: ``local`` lets this process admit its share of the quota,
``allow`` and ``deny`` say it all.

Whatever is admitted meanwhile is written into the journal (:mod:`enforcement.failover.journal`), and charged to the
windows it belonged to when the store returns. When that is, the breaker says (:mod:`enforcement.store.breaker`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from enforcement.failover.in_doubt import InDoubtCalls
from enforcement.failover.journal import Journal, JournalCharge, Ready, ReplayBatch
from enforcement.model.algorithms import NEVER, Concurrency, Reference, Spec
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan, with_share
from enforcement.plan.reply import MARKED, Reply
from enforcement.plan.request import Request
from enforcement.store.errors import StoreError

MAX_COUNTERS: Final = 50_000


class Fallback:
    """
    Decides in this process while the store is away.

    ``local`` limits run the reference algorithms with this process' share: the quota divided by the instances alive
    (the most seen in ten minutes), at least 1, and no more than the same part of what was last known to remain. Of the
    slots of a ``concurrency`` limit they count those that this process holds; the others' are in the others' shares.

    Args:
        held: Returns the slots of a counter that open reservations of this process hold: how many under each id.
    """

    def __init__(self, held: Callable[[str], Mapping[str, int]]) -> None:
        self._held = held
        self._begin()

    def _begin(self) -> None:
        self.journal = Journal()
        self.in_doubt = InDoubtCalls(lambda entry: self.journal.add(entry.bound, entry.mark, entry.permits))
        self._local = Reference(MAX_COUNTERS)
        self._told: dict[str, int] = {}  # by key: when the store said what a counter was begun from
        self._slots: dict[tuple[str, str], JournalCharge] = {}  # by id and key: given here, and not known to the store
        self._unrenewed: dict[
            tuple[str, str], JournalCharge
        ] = {}  # as these: given by the store, which may forget them
        self._values: dict[str, set[str]] = {}
        self._places = 0
        self._lock = threading.Lock()

    def decide(
        self,
        request: Request[Plan],
        last: Reply | None,
        now_us: int,
        fleet: int,
        *,
        trouble: StoreError | None = None,
    ) -> tuple[Reply, str]:
        """
        Return a reply in the store's form, with marks, and the reason.

        Args:
            last: The latest reply of the store to this plan; None: there is none.
            now_us: The best idea of the store's time, microseconds.
            fleet: Instances that share the quotas, at least 1.
            trouble: How the store was asked in vain: it may charge the request by itself. None: it was not asked.
        """
        plan = request.plan
        bounds, specs = plan.bounds, plan.specs(now_us)
        with self._lock:
            charges = [
                (
                    bound.key,
                    self._share(bound, spec, _known(last, i), fleet, now_us),
                    bound.cost_of(request.costs),
                )
                for i, (bound, spec) in enumerate(zip(bounds, specs, strict=True))
            ]
            refusing = [i for i, b in enumerate(bounds) if _refuses(b, charges[i][2])]
            charge = request.charge and not refusing
            numbers = self._local.decide(now_us, charges, charge=charge, ident=request.ident or "local")
            reply = _by_rules(numbers, bounds, refusing)
            if charge and reply.passed:
                self._write_down(request, reply, trouble)
            elif trouble is not None and trouble.late is not None:
                trouble.late.close()  # nothing depends on its answer
        return reply, "degraded_denied" if refusing else reply.reason(bounds)

    def amend(self, bound: BoundLimit, delta: int, mark: int, now_us: int) -> None:
        """Correct a charge while the store is away: here at once, and there when it returns."""
        with self._lock:
            self._local.amend(now_us, bound.key, bound.spec(now_us), delta, mark)
            self.journal.add(bound, mark, delta)

    def owe(self, ident: str, rows: Iterable[tuple[BoundLimit, int, int]], *, once: bool) -> None:
        """Take over a settlement of this id whose sending failed: for each counter its bound, mark and permits."""
        with self._lock:
            self.journal.owe(
                ReplayBatch(ident, tuple(JournalCharge(b.key, b, mark, permits) for b, mark, permits in rows), once)
            )

    def overflowed(self, plan: Plan) -> list[int]:
        """
        Tell of each unregistered value of a plan whether it finds no place (1) among those met while the store is away.
        """
        with self._lock:
            return [self._register(plan.bounds[i]) for i in plan.unregistered]

    def divert(self, debt: ReplayBatch, overflowed: Sequence[int]) -> None:
        """
        Owe to overflow counters what the store left out of a debt; *overflowed* has a number for each unregistered
        value in it.

        Slots are not owed there: whoever frees them does so where they were taken.
        """
        unregistered = [entry for entry in debt.entries if entry.bound.census is not None]
        with self._lock:
            for entry, diverts in zip(unregistered, overflowed, strict=True):
                if diverts and entry.bound.letter != "c":
                    self.journal.add(entry.bound.overflowing(), entry.mark, entry.permits)

    def rest(self, ready: Callable[[str], bool]) -> None:
        """
        Take note that the store counts again those whose keys are *ready*. The journal stays until it is paid.

        Counters stay as well: where the store goes once more before it was asked, they are a share that is used up.
        Slots are counted anew, by what is held then.
        """
        with self._lock:
            slots = [key for key, counter in self._local.counters.items() if isinstance(counter, Concurrency)]
            self._local.forget([key for key in slots if ready(key)])
            self._told = {key: said_at_us for key, said_at_us in self._told.items() if not ready(key)}
            if not self._told:
                self._values.clear()
                self._places = 0

    def forget(self, keys: Sequence[str]) -> None:
        """Forget counters that were reset in the store."""
        with self._lock:
            self._local.forget(keys)

    def owes(self) -> bool:
        """Tell whether anything is to be charged to the store, or handed over to it."""
        return bool(self.journal or self.in_doubt or self._slots or self._unrenewed)

    def after_fork(self) -> None:
        """Begin anew in a child: its parent pays what it owes, and another thread of it may have held the lock."""
        self._begin()

    def debts(self, ready: Ready = lambda entry: True) -> list[ReplayBatch]:
        """See :meth:`Journal.debts`. Slots that were given here and are held still come with them."""
        with self._lock:
            self.in_doubt.resolve(ready)
            return self.journal.debts(ready) + self._slot_debts(ready)

    def paid(self, debt: ReplayBatch) -> None:
        """Strike out a debt; see :meth:`Journal.paid`."""
        with self._lock:
            if debt.hands_over:
                self._handed_over(debt)
            else:
                self.journal.paid(debt)

    def refused(self, debt: ReplayBatch) -> None:
        """Deal with a debt that the store could not read; see :meth:`Journal.refused`."""
        with self._lock:
            if debt.hands_over:
                self._handed_over(debt)
            else:
                self.journal.refused(debt)

    def __len__(self) -> int:
        """Return how many counters this process keeps."""
        return len(self._local.counters)

    # Slots, which are held for as long as a request takes, and may outlast the outage.

    def holds(self, ident: str, key: str) -> bool:
        """Tell whether slots of this id were given here and the store does not know of them."""
        return (ident, key) in self._slots

    def leave(self, ident: str, bound: BoundLimit, count: int, now_us: int) -> bool:
        """Free slots here; tell whether that is all, for the store was not told of them."""
        with self._lock:
            if bound.key in self._local.counters:
                self._local.amend(now_us, bound.key, bound.spec(now_us), -count, 0, ident)
            self._unrenewed.pop((ident, bound.key), None)
            return self._slots.pop((ident, bound.key), None) is not None

    def renew(self, ident: str, bound: BoundLimit, count: int, now_us: int) -> None:
        """Prolong slots here, and hand them over later if the store gave them: it may have forgotten them by then."""
        with self._lock:
            counter = self._local.counters.get(bound.key)
            if isinstance(counter, Concurrency):
                counter.renew(ident, count, now_us, bound.spec(now_us).a)
            held = ident in self._held(bound.key)  # and was not left a moment ago
            if held and (ident, bound.key) not in self._slots and len(self._unrenewed) < MAX_COUNTERS:
                self._unrenewed[ident, bound.key] = JournalCharge(bound.key, bound, 0, count)

    def _slot_debts(self, ready: Ready) -> list[ReplayBatch]:
        rows = [*self._slots.items(), *self._unrenewed.items()]
        return [ReplayBatch(ident, (entry,), once=False) for (ident, _), entry in rows if ready(entry)]

    def _handed_over(self, debt: ReplayBatch) -> None:
        for entry in debt.entries:
            # Left while the call was under way: the store was told to free them too early, or not at all.
            name = debt.ident, entry.key
            if self._slots.pop(name, None) is None and self._unrenewed.pop(name, None) is None:
                self.journal.owe(replace(debt, entries=(replace(entry, permits=-entry.permits),)))

    def _register(self, bound: BoundLimit) -> int:
        census = bound.census
        assert census is not None
        values = self._values.setdefault(census.key, set())
        if bound.value in values:
            return 0
        if len(values) >= census.cap or self._places >= MAX_COUNTERS:
            return 1
        values.add(bound.value)
        self._places += 1
        return 0

    def _share(self, bound: BoundLimit, spec: Spec, known: tuple[int, int] | None, fleet: int, now_us: int) -> Spec:
        """
        Return the spec that this process may admit by, its counter begun from what was last known to be left.

        Args:
            known: When the store last said what remains, microseconds, and how much; None: it never did.
        """
        if bound.limit.on_store_failure == "allow":
            return replace(spec, shadow=True)
        share = min(spec.capacity, max(1, spec.capacity // fleet))
        local = with_share(spec, share)
        if not self._is_news(bound.key, known[0] if known else 0):
            return local
        if bound.letter == "c":  # what was left is old news: slots are freed by the moment
            for ident, count in self._held(bound.key).items():
                self._local.amend(now_us, bound.key, spec, count, 0, ident)
        elif known:
            left = max(0, known[1]) // fleet
            if left < share:
                self._local.decide(known[0], [(bound.key, local, share - left)], ident="known")
        return local

    def _is_news(self, key: str, said_at_us: int) -> bool:
        """
        Tell whether a counter is to begin from what the store said at an instant, and forget the one there was.

        One that was charged here since stays: however long the store decides nothing, it is a single share.
        """
        counter = self._local.counters.get(key)
        if counter is not None and (said_at_us <= self._told.get(key, 0) or said_at_us < counter.now):
            return False
        self._local.forget([key])
        if len(self._told) >= MAX_COUNTERS:
            del self._told[next(iter(self._told))]
        self._told[key] = said_at_us
        return True

    def _write_down(self, request: Request[Plan], reply: Reply, trouble: StoreError | None) -> None:
        entries = []
        for i, bound in reply.charged(request.plan.bounds):
            cost = bound.cost_of(request.costs)
            if not cost:
                continue
            entry = JournalCharge(bound.key, bound, reply.mark(i), cost)
            if bound.letter != "c":
                entries.append(entry)
            elif request.ident and len(self._slots) < MAX_COUNTERS:
                self._slots[request.ident, bound.key] = entry
        if trouble is None or not trouble.charges:
            for entry in entries:
                self.journal.add(entry.bound, entry.mark, entry.permits)
        elif trouble.late is not None:
            self.in_doubt.add(trouble.late, entries)


def _known(last: Reply | None, index: int) -> tuple[int, int] | None:
    return None if last is None else (last.now_us, last.remaining(index))


def _by_rules(numbers: list[int], bounds: Sequence[BoundLimit], refusing: Sequence[int]) -> Reply:
    """Return the reply in which ``allow`` limits say yes and those *refusing* say no, whatever was counted here."""
    for i, bound in enumerate(bounds):
        if bound.limit.on_store_failure == "allow":
            numbers[4 + MARKED * i] = 0
    for i in refusing:
        numbers[0], numbers[4 + MARKED * i] = 0, NEVER
    return Reply(numbers, MARKED)


def _refuses(bound: BoundLimit, cost: int) -> bool:
    return cost > 0 and bound.limit.on_store_failure == "deny" and not bound.limit.shadow


__all__ = ["Fallback"]
