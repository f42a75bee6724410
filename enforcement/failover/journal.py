"""
What this process admitted without the store, and owes it: permits by counter and window, paid in calls of one hash tag.

No I/O, and no lock: the fallback keeps it, and :mod:`enforcement.failover.replay` pays it when the store is back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Correction

MAX_ENTRIES: Final = 50_000
MAX_ENTRIES_PER_BATCH: Final = 100
GRAIN_US: Final = 100_000
"""Instants of the journal are rounded up to this, so that a busy bucket is one entry and not thousands."""


@dataclass(frozen=True, slots=True)
class JournalCharge:
    """What is to be charged to one counter: permits, and the mark of their window."""

    key: str
    bound: BoundLimit
    mark: int
    permits: int


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """
    Entries that are charged in one call.

    Attributes:
        ident: Makes a second sending harmless where *once* says so; slots are taken and freed under it, which is
            harmless by itself.
    """

    ident: str
    entries: tuple[JournalCharge, ...]
    once: bool = True

    @property
    def hands_over(self) -> bool:
        """Whether it tells the store of slots that this process gave, and that are held still."""
        return self.entries[0].bound.letter == "c" and self.entries[0].permits > 0

    def apart(self) -> list[ReplayBatch]:
        """Return a debt for each entry; nothing of this one may have been charged."""
        return [replace(self, ident=self._of_part(i), entries=(entry,)) for i, entry in enumerate(self.entries)]

    def _of_part(self, number: int) -> str:
        # Each is remembered by itself, while slots are known by the id that they were taken under.
        return f"{self.ident}.{number}" if self.once else self.ident

    def corrections(self, now_us: int) -> list[Correction]:
        """Return the settlement that pays it, in the store's terms of the present."""
        return [Correction(e.key, e.bound.spec(now_us), e.permits, e.mark) for e in self.entries]


Ready = Callable[[JournalCharge], bool]
"""Tells of an entry whether its counter can be paid to now."""


class Journal:
    """Permits admitted without the store, by counter and window; bounded, and counting what it had to drop."""

    def __init__(self) -> None:
        self.dropped = 0
        self._entries: dict[tuple[str, int], JournalCharge] = {}
        self._debts: list[ReplayBatch] = []
        self._owed = 0  # entries of all debts

    def __len__(self) -> int:
        return len(self._entries) + self._owed

    def add(self, bound: BoundLimit, mark: int, permits: int) -> None:
        """Write down a charge; *mark* names its window as the store would have."""
        if bound.letter in "lb":
            rounded = -(-mark // GRAIN_US) * GRAIN_US
            # What gives back a charge of the store's has to name its very instant: a log finds it by that.
            if permits > 0 or (bound.key, rounded) in self._entries:
                mark = rounded
        known = self._entries.get((bound.key, mark))
        if known is None and len(self) >= MAX_ENTRIES:
            self.dropped += abs(permits)
            return
        self._entries[bound.key, mark] = JournalCharge(
            bound.key, bound, mark, permits + (known.permits if known else 0)
        )

    def debts(self, ready: Ready) -> list[ReplayBatch]:
        """
        Return what is owed in calls of one hash tag each; it is owed until :meth:`paid`.

        What cannot be paid now stays written down by counter and window: however long that takes, it grows no further.
        Durable counters are paid apart, for the store may wait for them alone.
        """
        groups: dict[tuple[str, bool], list[JournalCharge]] = {}
        for entry in self._entries.values():
            groups.setdefault((entry.bound.tag, entry.bound.durable), []).append(entry)
        for entries in groups.values():
            if not ready(entries[0]):
                continue
            for entry in entries:
                del self._entries[entry.key, entry.mark]
            # One counter may owe for several windows: each in its own call, the oldest first.
            entries.sort(key=lambda entry: entry.mark)
            self._keep(ReplayBatch(uuid.uuid4().hex, chunk) for chunk in _distinct_chunks(entries))
        return [debt for debt in self._debts if all(map(ready, debt.entries))]

    def owe(self, debt: ReplayBatch) -> None:
        """Take over a settlement that may or may not have reached the store."""
        if len(self) < MAX_ENTRIES:
            self._keep((debt,))
        else:
            self.dropped += _permits(debt)

    def paid(self, debt: ReplayBatch) -> None:
        """Strike out a debt."""
        self._debts.remove(debt)
        self._owed -= len(debt.entries)

    def refused(self, debt: ReplayBatch) -> None:
        """Owe the entries of a debt one by one, for one of them spoils the call; one that stands alone is given up."""
        self.paid(debt)
        if len(debt.entries) > 1:
            self._keep(debt.apart())
        else:
            self.dropped += _permits(debt)

    def _keep(self, debts: Iterable[ReplayBatch]) -> None:
        for debt in debts:
            self._debts.append(debt)
            self._owed += len(debt.entries)


def _permits(debt: ReplayBatch) -> int:
    return sum(abs(entry.permits) for entry in debt.entries)


def _distinct_chunks(entries: Sequence[JournalCharge]) -> list[tuple[JournalCharge, ...]]:
    """Cut entries into calls in which no counter stands twice: a call reads all counters before it writes one."""
    chunks: list[list[JournalCharge]] = []
    placed: dict[str, int] = {}
    for entry in entries:
        at = placed.get(entry.key, 0)
        while at < len(chunks) and len(chunks[at]) >= MAX_ENTRIES_PER_BATCH:
            at += 1
        while at >= len(chunks):
            chunks.append([])
        chunks[at].append(entry)
        placed[entry.key] = at + 1
    return [tuple(chunk) for chunk in chunks if chunk]


__all__ = ["Journal", "JournalCharge", "Ready", "ReplayBatch"]
