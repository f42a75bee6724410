"""
The charges of this process that have to be replayed to the store.

There is one for each counter and window. They are sent in batches, and each batch has counters of one hash tag. There
is no I/O and no lock here. :mod:`enforcement.failover.fallback` protects the journal, and
:mod:`enforcement.failover.replay` sends the batches when the store is back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Correction

MAX_CHARGES: Final = 50_000
MAX_CHARGES_PER_BATCH: Final = 100
GRAIN_US: Final = 100_000
"""Instants are rounded up to this, so that a busy bucket makes one charge and not thousands."""


@dataclass(frozen=True, slots=True)
class JournalCharge:
    """Permits to charge to one counter, and the mark of their window."""

    key: str
    bound: BoundLimit
    mark: int
    permits: int


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """
    Charges that are sent in one call.

    Attributes:
        ident: The id of the batch. Slots are taken and freed under it.
        once: Whether the store remembers the id, so that a second call changes nothing. Slots do not need that.
    """

    ident: str
    charges: tuple[JournalCharge, ...]
    once: bool = True

    @property
    def reports_slots(self) -> bool:
        """Whether the batch reports slots that are still held."""
        return self.charges[0].bound.letter == "c" and self.charges[0].permits > 0

    def apart(self) -> list[ReplayBatch]:
        """Return one new batch for each charge of this batch, which the store must not have executed."""
        return [replace(self, ident=self._part(i), charges=(charge,)) for i, charge in enumerate(self.charges)]

    def _part(self, number: int) -> str:
        # The store remembers each part by an id of its own, but it knows slots by the id that took them.
        return f"{self.ident}.{number}" if self.once else self.ident

    def corrections(self, now_us: int) -> list[Correction]:
        """Return the corrections to send for this batch, with the limits as they are at *now_us*."""
        return [Correction(c.key, c.bound.spec(now_us), c.permits, c.mark) for c in self.charges]


Ready = Callable[[JournalCharge], bool]
"""Returns whether a charge can be replayed now."""


class Journal:
    """
    Keeps permits that were admitted without the store, up to a bound.

    Attributes:
        dropped: Permits that had no room, or that the store could not read.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._charges: dict[tuple[str, int], JournalCharge] = {}
        self._batches: list[ReplayBatch] = []
        self._batched = 0  # charges in all batches

    def __len__(self) -> int:
        return len(self._charges) + self._batched

    def add(self, charge: JournalCharge) -> None:
        """
        Add a charge to the sum of its counter and window, or count it as dropped if the journal is full. Its mark is
        the one that the store would have set.
        """
        bound, mark, permits = charge.bound, charge.mark, charge.permits
        if bound.letter in "lb":
            rounded = -(-mark // GRAIN_US) * GRAIN_US
            # A log finds a charge by its exact instant. So what gives back permits is rounded only if the charge that
            # it corrects is in this journal.
            if permits > 0 or (bound.key, rounded) in self._charges:
                mark = rounded
        known = self._charges.get((bound.key, mark))
        if known is None and len(self) >= MAX_CHARGES:
            self.dropped += abs(permits)
            return
        permits += known.permits if known else 0
        self._charges[bound.key, mark] = JournalCharge(bound.key, bound, mark, permits)

    def add_batch(self, batch: ReplayBatch) -> None:
        """Add a batch that the store may or may not have executed, or count it as dropped if the journal is full."""
        if len(self) < MAX_CHARGES:
            self._keep((batch,))
        else:
            self.dropped += _permits(batch)

    def batches(self, ready: Ready) -> list[ReplayBatch]:
        """
        Put *ready* charges into new batches, and return all batches of which every charge is *ready*. Each has one hash
        tag, and stays until :meth:`remove`.

        Charges that are not ready stay separate by counter and window, so that the journal does not grow with time.
        Durable counters have their own batches, as the store may wait for those alone.
        """
        groups: dict[tuple[str, bool], list[JournalCharge]] = {}
        for charge in self._charges.values():
            groups.setdefault((charge.bound.tag, charge.bound.durable), []).append(charge)
        for charges in groups.values():
            if not ready(charges[0]):
                continue
            for charge in charges:
                del self._charges[charge.key, charge.mark]
            # A counter may have charges in several windows. Each is sent in its own call, and the oldest comes first.
            charges.sort(key=lambda charge: charge.mark)
            self._keep(ReplayBatch(uuid.uuid4().hex, chunk) for chunk in _distinct_chunks(charges))
        return [batch for batch in self._batches if all(map(ready, batch.charges))]

    def remove(self, batch: ReplayBatch) -> None:
        """Remove a batch from the journal."""
        self._batches.remove(batch)
        self._batched -= len(batch.charges)

    def refused(self, batch: ReplayBatch) -> None:
        """
        Replace a batch that the store could not read by one for each charge, or drop it if it has only one charge.
        """
        self.remove(batch)
        if len(batch.charges) > 1:
            self._keep(batch.apart())
        else:
            self.dropped += _permits(batch)

    def _keep(self, batches: Iterable[ReplayBatch]) -> None:
        for batch in batches:
            self._batches.append(batch)
            self._batched += len(batch.charges)


def _permits(batch: ReplayBatch) -> int:
    return sum(abs(charge.permits) for charge in batch.charges)


def _distinct_chunks(charges: Sequence[JournalCharge]) -> list[tuple[JournalCharge, ...]]:
    """Return charges in tuples without two of one counter, as a call reads all counters before it writes one."""
    chunks: list[list[JournalCharge]] = []
    next_chunk: dict[str, int] = {}
    for charge in charges:
        at = next_chunk.get(charge.key, 0)
        while at < len(chunks) and len(chunks[at]) >= MAX_CHARGES_PER_BATCH:
            at += 1
        while at >= len(chunks):
            chunks.append([])
        chunks[at].append(charge)
        next_chunk[charge.key] = at + 1
    return [tuple(chunk) for chunk in chunks if chunk]


__all__ = ["Journal", "JournalCharge", "Ready", "ReplayBatch"]
