"""Counters of this process for limits with the rule ``local``, which count its share of each quota."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from enforcement.failover.latest_replies import Known
from enforcement.failover.saved_counter import SavedCounter
from enforcement.model.algorithms import HOPELESS, Concurrency, Counter, Reference, Spec
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.reply import MARKED
from enforcement.plan.request import Request

MAX_COUNTERS: Final = 50_000
MAX_SAVED: Final = 10_000
UNTIL_RETURN_US: Final = 1_000_000
"""The wait for a cost above the share of this process. It is unknown when the store is back."""


class LocalShares:
    """
    Counts the share of each quota that this process may admit alone, with the reference algorithms.

    The share is the quota divided by the number of live instances (the highest of ten minutes), but at least 1. It is
    no more than the same part of what remained by the last reply of the store about the counter. For a ``concurrency``
    limit, the slots that this process holds count, as those of the other instances belong to their shares.

    The caller holds a lock.

    Args:
        held: Returns the slots of a counter that open reservations of this process hold, by the id of the reservation.

    Attributes:
        changes: Increases whenever a counter may have changed.
    """

    def __init__(self, held: Callable[[str], Mapping[str, int]]) -> None:
        self.changes = 0
        self._held = held
        self._local = Reference(MAX_COUNTERS)
        self._replied_at_us: dict[str, int] = {}  # for each key, the time of the reply that its counter began from

    def __len__(self) -> int:
        return len(self._local.counters)

    def in_use(self) -> bool:
        """Return whether any counter was used since the store counted it last."""
        return bool(self._replied_at_us)

    def decide(
        self,
        request: Request[Plan],
        costs: Sequence[int],
        known: Sequence[Known | None],
        now_us: int,
        fleet: int,
        *,
        charge: bool,
    ) -> list[int]:
        """
        Decide a request by the local counters, and return the numbers of a reply in the form of the store's with marks.

        Args:
            costs: The permits for each limit of the plan.
            known: What the store said last about each counter, or None.
            now_us: The store's time.
            fleet: Instances that share the quotas, at least 1.
            charge: Whether the request is charged if it passes.
        """
        plan = request.plan
        self.changes += 1
        rows = [
            (bound.key, self._share(bound, spec, said, fleet, now_us), cost)
            for bound, spec, said, cost in zip(plan.bounds, plan.specs(now_us), known, costs, strict=True)
        ]
        numbers = self._local.decide(now_us, rows, charge=charge, ident=request.ident or "local")
        if HOPELESS in numbers:
            for wait, bound, cost in zip(range(4, len(numbers), MARKED), plan.bounds, costs, strict=True):
                # More than the share, but not more than the limit admits when the store is back, and nobody knows when.
                if numbers[wait] == HOPELESS and cost <= bound.limit.largest_cost:
                    numbers[wait] = UNTIL_RETURN_US
        return numbers

    def amend(self, bound: BoundLimit, delta: int, mark: int, now_us: int) -> None:
        """Correct a charge of a counter of this process by *delta* permits."""
        self.changes += 1
        self._local.amend(now_us, bound.key, bound.spec(now_us), delta, mark)

    def free(self, ident: str, bound: BoundLimit, count: int, now_us: int) -> None:
        """Free the slots that this id has of a limit in this process."""
        if bound.key in self._local.counters:
            self._local.amend(now_us, bound.key, bound.spec(now_us), -count, 0, ident)

    def renew(self, ident: str, bound: BoundLimit, count: int, now_us: int) -> None:
        """Extend the slots of this id in this process."""
        counter = self._local.counters.get(bound.key)
        if isinstance(counter, Concurrency):
            counter.renew(ident, count, now_us, bound.spec(now_us).a)

    def forget(self, keys: Sequence[str]) -> None:
        """Delete the counters of these keys in this process."""
        self.changes += 1
        self._local.forget(keys)

    def counters(self) -> list[tuple[str, Counter]]:
        """
        Return the keys and counters that can be saved, and of more than ``MAX_SAVED`` those that were charged last.

        The counters are replaced, and never changed.
        """
        rows = [row for row in self._local.counters.items() if SavedCounter.takes(row[1])]
        return rows[-MAX_SAVED:]

    def restore(self, saved: Sequence[SavedCounter]) -> None:
        """Add the counters of an earlier process that are unknown here, so that what it has admitted still counts."""
        for row in saved:
            self._local.counters.setdefault(row.key, row.counter())

    def rest(self, ready: Callable[[str], bool]) -> None:
        """
        Mark the keys that are *ready* as counted by the store again, and delete their slots in this process.

        Their counters stay. If the store is lost again before it has replied for such a key, the share used up before
        still counts. Slots are counted anew then, from what is held at that time.
        """
        slots = [key for key, counter in self._local.counters.items() if isinstance(counter, Concurrency)]
        self._local.forget([key for key in slots if ready(key)])
        self._replied_at_us = {key: at_us for key, at_us in self._replied_at_us.items() if not ready(key)}

    def _share(self, bound: BoundLimit, spec: Spec, known: Known | None, fleet: int, now_us: int) -> Spec:
        """
        Return the spec of the limit's share that this process may admit, and begin its counter from a newer reply.

        Args:
            known: What the store said last about the counter. None if it said nothing.
        """
        if bound.limit.on_store_failure == "allow":
            return replace(spec, shadow=True)
        share = min(spec.capacity, max(1, spec.capacity // fleet))
        local = with_share(spec, share)
        if not self._begins(bound.key, known.at_us if known else 0):
            return local
        if bound.letter == "c":  # the reply is outdated, as slots are freed at any moment
            for ident, count in self._held(bound.key).items():
                self._local.amend(now_us, bound.key, spec, count, 0, ident)
        elif known:
            # A reply of later than now was read before the store's clock was set back.
            left, at_us = max(0, known.left_of(bound.limit.capacity)) // fleet, min(known.at_us, now_us)
            if local.letter == "r":
                # The rest of an earlier window is not carried, since others may have used it.
                if bound.window_end(known.at_us) > now_us:
                    self._local.begin(at_us, bound.key, local, left)
            elif left < share:
                self._local.decide(at_us, [(bound.key, local, share - left)], ident="known")
        return local

    def _begins(self, key: str, replied_at_us: int) -> bool:
        """
        Return whether a counter has to begin from the store's reply of this time, and drop the old counter if so.

        A counter that was charged here after the reply stays. So this process admits a single share, however long the
        store is unavailable.
        """
        counter = self._local.counters.get(key)
        if counter is not None and (replied_at_us <= self._replied_at_us.get(key, 0) or replied_at_us < counter.now):
            return False
        self._local.forget([key])
        if len(self._replied_at_us) >= MAX_COUNTERS:
            del self._replied_at_us[next(iter(self._replied_at_us))]
        self._replied_at_us[key] = replied_at_us
        return True


def with_share(spec: Spec, share: int) -> Spec:
    """
    Return *spec* if *share* is its capacity, else a copy with *share* as its capacity. The refill of a bucket and the
    quota beside a rollover shrink with it.
    """
    if share == spec.capacity:
        return spec
    if spec.letter == "r":
        return replace(spec, capacity=share, a=min(share, max(1, spec.a * share // spec.capacity)))
    if spec.letter != "b":
        return replace(spec, capacity=share)
    return replace(spec, capacity=share, a=spec.a * share, b=(spec.b[0] * spec.capacity,))
