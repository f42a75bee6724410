"""
The charges of this process that have to be replayed to the store.

There is one for each counter and window. They are sent in batches, each of which one call can reach. There is no I/O
and no lock here. :mod:`enforcement.failover.fallback` protects the journal, and
:mod:`enforcement.failover.replay` sends the batches when the store is back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Correction

if TYPE_CHECKING:
    from enforcement.plan.records import RecordKeys

MAX_CHARGES: Final = 50_000
MAX_CHARGES_PER_BATCH: Final = 100
MAX_LOOKED_AT: Final = 1_000
"""Counters of unavailable servers that are looked at in one go, which takes about 3 ms."""
GRAIN_US: Final = 100_000
"""Instants are rounded up to this, so that a busy bucket makes one charge and not thousands."""


class JournalCharge(NamedTuple):
    """Permits to charge to one counter, and the mark of their window."""

    key: str
    bound: BoundLimit
    mark: int
    permits: int


class ReplayBatch(NamedTuple):
    """
    Charges that are sent in one call.

    Attributes:
        ident: The id of the batch. Slots are taken and freed under it.
        once: Whether the store remembers the id, so that a second call changes nothing. Slots do not need that, and
            neither does a reservation that the store has recorded.
        where: Where the store has recorded the reservation that is settled. None: nowhere.
        open_at_us: It is settled only if it was open then, by the store's clock, in microseconds since the epoch. None:
            also if it is lost.
    """

    ident: str
    charges: tuple[JournalCharge, ...]
    once: bool = True
    where: RecordKeys | None = None
    open_at_us: int | None = None

    @property
    def reports_slots(self) -> bool:
        """Whether the batch reports slots that are still held."""
        return self.charges[0].bound.letter == "c" and self.charges[0].permits > 0

    def apart(self) -> list[ReplayBatch]:
        """Return one new batch for each charge of this batch, which the store must not have executed."""
        parts = [self._replace(ident=self._part(i), charges=(charge,)) for i, charge in enumerate(self.charges)]
        if self.where is not None:  # the first call removes the record, so the others are remembered by their ids
            parts[1:] = [ReplayBatch(f"{self.ident}.{i}", part.charges) for i, part in enumerate(parts[1:], 1)]
        return parts

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
        owed: For each key of a counter the number of its charges. Decisions read it without a lock.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self.owed: dict[str, int] = {}
        self._charges: dict[str, dict[int, JournalCharge]] = {}  # by key and mark
        self._batches: dict[int, ReplayBatch] = {}  # the store may have executed them
        self._in_batches: dict[str, list[ReplayBatch]] = {}  # the same, by key
        self._number = 0  # charges, including those of batches

    def __len__(self) -> int:
        return self._number

    def add(self, charge: JournalCharge) -> None:
        """
        Add a charge to the sum of its counter and window, or count it as dropped if the journal is full. Its mark is
        the one that the store would have set.
        """
        bound, mark, permits = charge.bound, charge.mark, charge.permits
        own = self._charges.get(bound.key, {})
        if bound.letter in "lb":
            rounded = -(-mark // GRAIN_US) * GRAIN_US
            # A log finds a charge by its exact instant. So what gives back permits is rounded only if the charge that
            # it corrects is in this journal.
            if permits > 0 or rounded in own:
                mark = rounded
        known = own.get(mark)
        if known is None:
            if len(self) >= MAX_CHARGES:
                self.dropped += abs(permits)
                return
            self._count(bound.key, 1)
            own = self._charges.setdefault(bound.key, own)
        own[mark] = JournalCharge(bound.key, bound, mark, permits + (known.permits if known else 0))

    def holds(self, key: str) -> bool:
        """Return whether a charge to this counter is not replayed yet."""
        return key in self.owed

    def add_batch(self, batch: ReplayBatch) -> None:
        """Add a batch that the store may or may not have executed, or count it as dropped if the journal is full."""
        if len(self) < MAX_CHARGES:
            self._keep((batch,))
        else:
            self.dropped += _permits(batch)

    def add_batches(self, batches: Iterable[ReplayBatch]) -> None:
        """Add several batches, as :meth:`add_batch` does."""
        for batch in batches:
            self.add_batch(batch)

    def batches(self, ready: Ready, most: int | None = None, *, together: bool = False) -> list[ReplayBatch]:
        """
        Put *ready* charges into new batches, and return all batches of which every charge is *ready*.

        Each stays until :meth:`remove`.

        Charges that are not ready stay separate by counter and window, so that the journal does not grow with time. If
        *most* is given, only so many of them are looked at that no decision waits long for the journal; the next call
        looks at others. Durable counters have their own batches, as the store may wait for those alone.

        Args:
            most: About how many charges to return, the oldest first. None: all of them.
            together: Whether one call reaches counters of different hash tags.
        """
        found, left = [], self._number if most is None else most
        for batch in self._batches.values():
            if left > 0 and all(map(ready, batch.charges)):
                found.append(batch)
                left -= len(batch.charges)
        keys: list[str] = []
        later: list[str] = []
        checked: dict[tuple[str, bool], bool] = {}
        for key, charges in self._charges.items():
            if left <= 0 or (most is not None and len(later) >= MAX_LOOKED_AT):
                break
            charge = next(iter(charges.values()))
            group = charge.bound.tag, charge.bound.durable
            if group not in checked:
                checked[group] = ready(charge)
            if checked[group]:
                keys.append(key)
                left -= len(charges)
            else:
                later.append(key)
        for key in later:
            self._charges[key] = self._charges.pop(key)
        return found + self._form(keys, together)

    def batches_of(self, keys: Sequence[str], *, together: bool = False) -> list[ReplayBatch]:
        """
        Put the charges of these counters into new batches, and return these and all earlier batches that have such
        charges.

        Each stays until :meth:`remove`.
        """
        batches: dict[int, ReplayBatch] = {}
        for key in keys:
            batches |= {id(batch): batch for batch in self._in_batches.get(key, ())}
        return [*batches.values(), *self._form([key for key in keys if key in self._charges], together)]

    def remove(self, batch: ReplayBatch) -> bool:
        """Remove a batch, and return False if that happened before, as several threads may send it."""
        if self._batches.pop(id(batch), None) is None:
            return False
        for charge in batch.charges:
            others = self._in_batches[charge.key]
            others.remove(batch)
            if not others:
                del self._in_batches[charge.key]
            self._count(charge.key, -1)
        return True

    def refused(self, batch: ReplayBatch) -> None:
        """Send the charges of a batch one by one from now on, or drop its only charge, as one of them is unreadable."""
        if not self.remove(batch):
            return
        if len(batch.charges) > 1:
            self._keep(batch.apart())
        else:
            self.dropped += _permits(batch)

    def _form(self, keys: Iterable[str], together: bool) -> list[ReplayBatch]:
        """Return new batches with all charges of these counters."""
        groups: dict[tuple[str, bool], list[JournalCharge]] = {}
        for key in keys:
            charges = self._charges.pop(key).values()
            self._count(key, -len(charges))
            bound = next(iter(charges)).bound
            tag = "" if together and not bound.durable else bound.tag
            groups.setdefault((tag, bound.durable), []).extend(charges)
        made = []
        for group in groups.values():
            # A counter may have charges in several windows. Each is sent in its own call, and the oldest comes first.
            group.sort(key=lambda charge: charge.mark)
            made += [ReplayBatch(uuid.uuid4().hex, chunk) for chunk in _distinct_chunks(group)]
        self._keep(made)
        return made

    def _keep(self, batches: Iterable[ReplayBatch]) -> None:
        for batch in batches:
            self._batches[id(batch)] = batch
            for charge in batch.charges:
                self._in_batches.setdefault(charge.key, []).append(batch)
                self._count(charge.key, 1)

    def _count(self, key: str, more: int) -> None:
        self._number += more
        number = self.owed.get(key, 0) + more
        if number:
            self.owed[key] = number
        else:
            del self.owed[key]


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
