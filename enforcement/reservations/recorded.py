"""Reservations of this process that the store has recorded, or may have recorded, until they are settled."""

from __future__ import annotations

from collections.abc import Sequence

from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Steps
from enforcement.plan.costs import Costs
from enforcement.plan.records import RecordKeys
from enforcement.state.reservation import HeldReservation
from enforcement.state.settlement import concluding

Rows = Sequence[tuple[BoundLimit, int, int]]


class _WithRecord(HeldReservation):
    """
    A reservation whose record has to be removed when it is settled or cancelled. Whoever makes it sets *where*.
    """

    where: RecordKeys
    _open_only = False  # whether a settlement leaves it as it is if it is lost

    def _correcting(self, rows: Rows) -> Steps[None]:
        if self._corrected:
            return
        self._corrected = True
        rows = [row for row in rows if row[1]]
        self.settled_elsewhere = bool((yield from self._sending(rows)))
        if not self.settled_elsewhere:
            self._count(rows)
        self._denials.forget([bound.key for bound, delta, _ in rows if delta < 0])

    def _concluding(self, rows: Rows) -> Steps[bool]:
        """
        Return the commands that correct charges and remove the record. Their result is whether the charges were left as
        they are, since there was no record, or since a lost one stays.
        """
        return concluding(self._health, rows, self.where, self.decision.plan.bounds, open_only=self._open_only)


class RecordedReservation(_WithRecord):
    """
    The charges and slots of one admitted request, with a record in the store.

    Whatever settles or cancels it removes the record in the same call. Once the record is gone, as another process or
    an operator has settled it, no charge is changed any more.
    """

    @property
    def id(self) -> str:
        """The id by which any process can settle it."""
        return self.where.id

    def concluding(self, costs: Costs | None, *, is_last_word: bool = True) -> Steps[None]:
        """Return the commands that settle the reservation and free its slots, as HeldReservation does."""
        self._open_only = not is_last_word
        rows = [] if costs is None else self._differences(costs)
        if self._plan.has_slots:
            return self._leaving(rows)
        self._left = True
        return self._correcting(rows)

    def _leaving(self, rows: list[tuple[BoundLimit, int, int]]) -> Steps[None]:
        """Yield the command that corrects charges, and frees the slots if that is where they are."""
        slots = () if self._corrected or self._left else self.slots()
        if slots and self._are_in_the_store(slots):
            self._left = True
            rows += [(bound, -count, 0) for bound, count in slots]
        yield from self._correcting(rows)
        yield from self.leaving()

    def _are_in_the_store(self, slots: Sequence[tuple[BoundLimit, int]]) -> bool:
        """Return whether the store can free the slots now, and this process has given none."""
        health = self._health
        held = any(health.fallback.holds(self.ident, bound.key) for bound, _ in slots)
        return not held and not any(health.is_away(bound.key) for bound in self.decision.bounds)

    def _sending(self, rows: Rows) -> Steps[bool]:
        return self._concluding(rows)


class UncertainReservation(_WithRecord):
    """
    A reservation that this process has made, of which the store may have a record, because only its reply was lost.

    Its charges are corrected as if there were none, and the record is removed after that.
    """

    def _sending(self, rows: Rows) -> Steps[bool]:
        if rows:
            yield from super()._sending(rows)
        yield from self._concluding(())
        return False  # its record may never have been made
