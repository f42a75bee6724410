"""Slots of ``concurrency`` limits that the store has to hear of. They may be held for longer than an outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from enforcement.failover.journal import JournalCharge, Ready, ReplayBatch
from enforcement.plan.binding import BoundLimit

MAX_SLOTS: Final = 50_000

SlotName = tuple[str, str]
"""The id of a reservation, and the key of a counter."""


class UnreportedSlots:
    """
    Keeps the slots that the store does not know of, or may have forgotten.

    The caller holds a lock.

    Args:
        held: Returns the slots of a counter that open reservations of this process hold, by the id of the reservation.
    """

    def __init__(self, held: Callable[[str], Mapping[str, int]]) -> None:
        self._held = held
        self._given: dict[SlotName, JournalCharge] = {}  # taken without the store
        self._unrenewed: dict[SlotName, JournalCharge] = {}  # taken from the store, but not renewed there

    def __bool__(self) -> bool:
        return bool(self._given or self._unrenewed)

    def add(self, ident: str, charge: JournalCharge) -> None:
        """Add slots that this process gave to a reservation without the store, unless there are too many."""
        if len(self._given) < MAX_SLOTS:
            self._given[ident, charge.key] = charge

    def holds(self, ident: str, key: str) -> bool:
        """Return whether this process gave slots to this id, and the store does not know of them."""
        return (ident, key) in self._given

    def renew(self, ident: str, bound: BoundLimit, count: int) -> None:
        """Add slots that the store gave and that could not be renewed there, unless they were freed meanwhile."""
        name = ident, bound.key
        if ident not in self._held(bound.key):  # they were freed a moment ago
            return
        if name not in self._given and len(self._unrenewed) < MAX_SLOTS:
            self._unrenewed[name] = JournalCharge(bound.key, bound, 0, count)

    def free(self, ident: str, key: str) -> bool:
        """Drop slots that were freed, and return whether the store does not know of them."""
        self._unrenewed.pop((ident, key), None)
        return self._given.pop((ident, key), None) is not None

    def batches(self, ready: Ready) -> list[ReplayBatch]:
        """Return one batch for each charge that is *ready*. The store takes its slots under the same id."""
        rows = [*self._given.items(), *self._unrenewed.items()]
        return [ReplayBatch(ident, (charge,), once=False) for (ident, _), charge in rows if ready(charge)]

    def reported(self, batch: ReplayBatch) -> Iterator[ReplayBatch]:
        """Drop slots that the store knows of now, and yield batches that free those which nobody holds any more."""
        for charge in batch.charges:
            name = batch.ident, charge.key
            if self._given.pop(name, None) is None and self._unrenewed.pop(name, None) is None:
                yield _freeing(batch, charge)

    def perhaps_reported(self, batch: ReplayBatch) -> Iterator[ReplayBatch]:
        """
        Keep slots that the store may know of now to report them again, and yield batches that free those which nobody
        holds any more.
        """
        for charge in batch.charges:
            name = batch.ident, charge.key
            if (given := self._given.pop(name, None)) is not None:
                self._unrenewed[name] = given
            elif name not in self._unrenewed:
                yield _freeing(batch, charge)


def _freeing(batch: ReplayBatch, charge: JournalCharge) -> ReplayBatch:
    """Return a batch that frees slots which were freed here during a call, perhaps too early for the store."""
    return batch._replace(charges=(charge._replace(permits=-charge.permits),))
