"""
Correct earlier charges.

A correction goes to the store if it can. Otherwise this process records it, and replays it when the store is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from enforcement.failover.health import Health
from enforcement.model.keys import DIRTY, marker_beside, marker_in, scope_of
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import CONCLUDE, CONCLUDE_OPEN, REMEMBERED_MS, Correction, Steps
from enforcement.plan.reply import IS_LOST, NOT_NOW
from enforcement.store import resp
from enforcement.store.errors import StoreError

if TYPE_CHECKING:
    from enforcement.plan.records import RecordKeys

Row = tuple[BoundLimit, int, int]
"""A limit, the permits to add to its counter, and the mark of the window in which they were charged."""

ALREADY_SETTLED: Final = -1
"""The reply to a correction that was made before."""


def correcting(
    health: Health, rows: Sequence[tuple[BoundLimit, int, int]], ident: str, *, once_for_ms: int | None
) -> Steps[None]:
    """
    Yield the commands that correct charges in the store, or correct them here while the store is unavailable.

    The corrections are sent in one command for each group of counters that one call can reach.

    Args:
        rows: For each counter its limit, the permits to add (negative to return permits), and the mark of the window in
            which they were charged.
        ident: Id of the reservation or request that was charged.
        once_for_ms: How long the store remembers *ident*, in milliseconds, so that a second copy of the correction
            changes nothing. None if a second copy does no harm anyway, as when slots are freed.
    """
    now_us = health.now_us()
    for group in health.together(rows):
        owes = once_for_ms is not None and any(health.fallback.owes_to(bound) for bound, _, _ in group)
        if owes or health.is_away(group[0][0].key):
            if once_for_ms is None:
                health.fallback.owe(ident, _owed(group), once=False)
            else:
                for bound, delta, mark in group:
                    health.fallback.amend(bound, delta, mark, now_us)
            continue
        corrections = [Correction(b.key, b.spec(now_us), delta, mark) for b, delta, mark in group]
        marker, clock = marker_beside(corrections[0].key, ident), health.clock and health.clock()
        try:
            command = commands.settle(corrections, marker, clock, ident=ident, once_for_ms=once_for_ms)
            reply = yield resp.pack(command)
        except StoreError as exc:
            health.failed(exc)
            # The store may have executed the command. A replay does no harm, because the store finds the id, or slots
            # that are free already.
            health.fallback.owe(ident, _owed(group), once=once_for_ms is not None)
            health.wake()
        else:
            if type(reply) is int and reply in NOT_NOW:
                health.fallback.owe(ident, _owed(group), once=once_for_ms is not None)


def concluding(
    health: Health, rows: Sequence[Row], where: RecordKeys, bounds: Sequence[BoundLimit], *, open_only: bool = False
) -> Steps[bool]:
    """
    Yield the commands that correct the charges of a recorded reservation and remove its record, as :func:`correcting`
    does. The record is removed even if no charge is wrong.

    Nothing is done if the record is gone, since the reservation was settled before.

    Args:
        rows: As for :func:`correcting`, perhaps none.
        where: Where the reservation is recorded.
        bounds: What the reservation was made for. At least one lies beside the record.
        open_only: If it is lost, only slots are freed. It keeps its charge and its record.
    Returns:
        Whether its charges were left as they are, as the record was gone, or it is lost.
    """
    beside: Sequence[Row] = rows
    others: Sequence[Sequence[Row]] = ()
    if not rows or health.connector.one_slot_per_call:
        if not any(where.lies_beside(bound.key) for bound, _, _ in rows):
            # The call that removes the record needs a counter of its slot, although that one keeps its charge.
            rows = [*rows, (next(bound for bound in bounds if where.lies_beside(bound.key)), 0, 0)]
        # The other slots of a cluster know no record, so what lies beside it comes first.
        groups = sorted(health.together(rows), key=lambda group: not where.lies_beside(group[0][0].key))
        beside, others = groups[0], groups[1:]
    now_us = health.now_us()
    # The store knows best what is open now. What it gets later must have been open at this instant.
    open_at_us = now_us if open_only else None
    reply = None
    if health.is_away(beside[0][0].key):
        for bound, delta, mark in beside:
            health.fallback.amend(bound, delta, mark, now_us, owed=False)
        _owe(health, beside, where, open_at_us)
    else:
        try:
            reply = yield _conclude(where, beside, now_us, health.clock and health.clock(), open_only=open_only)
        except StoreError as exc:
            health.failed(exc)
            _owe(health, beside, where, open_at_us)
            health.wake()
        else:
            if type(reply) is int and reply in NOT_NOW:
                _owe(health, beside, where, open_at_us)
    if reply == IS_LOST:
        slots = [row for row in rows if row[0].letter == "c"]
        if slots:
            yield from correcting(health, slots, where.ident, once_for_ms=None)
        return True
    for group in others:
        yield from correcting(health, group, where.ident, once_for_ms=REMEMBERED_MS)
    return reply == ALREADY_SETTLED


def _owe(health: Health, rows: Sequence[Row], where: RecordKeys, open_at_us: int | None) -> None:
    health.fallback.owe(where.ident, _owed(rows), once=False, where=where, open_at_us=open_at_us)


def _conclude(where: RecordKeys, rows: Sequence[Row], now_us: int, clock: int | None, *, open_only: bool) -> bytes:
    """
    Return the encoded call of :func:`~enforcement.plan.records.conclude`, without the lists that are between them.

    Args:
        clock: The time of a test's clock. None: the store uses its own clock.
        open_only: Whether the reservation must be open now.
    """
    scope = scope_of(rows[0][0].key)
    keys = [where.index, where.record, marker_in(scope, where.ident)]
    dirty: dict[str, None] = {}
    numbers: list[str | int] = ["" if clock is None else clock, "", where.ident]
    for bound, delta, mark in rows:
        spec = bound.spec(now_us)
        keys.append(bound.key)
        if spec.durable:
            dirty[(scope if bound.key.startswith(scope) else scope_of(bound.key)) + DIRTY] = None
        numbers += (spec.text, delta, mark)
    keys += dirty
    name, more = (CONCLUDE_OPEN, (where.ident, "")) if open_only else (CONCLUDE, (where.ident,))
    return resp.pack(("FCALL", name, len(keys), *keys, *more, *numbers))


def _owed(rows: Sequence[Row]) -> list[tuple[BoundLimit, int, int]]:
    """Return for each counter its limit, the mark of the window, and the permits to add, as the fallback keeps them."""
    return [(bound, mark, delta) for bound, delta, mark in rows]
