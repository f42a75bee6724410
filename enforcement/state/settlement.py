"""
Correct earlier charges.

A correction goes to the store if it can. Otherwise this process records it, and replays it when the store is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from enforcement.failover.health import Health
from enforcement.model.keys import marker_beside
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import REMEMBERED_MS, Correction, Steps
from enforcement.plan.reply import NOT_RESTORED
from enforcement.store import resp
from enforcement.store.errors import StoreError

if TYPE_CHECKING:
    from enforcement.plan.records import RecordKeys

ALREADY_SETTLED: Final = -1
"""The reply to a correction that was made before."""


def correcting(
    health: Health, rows: Sequence[tuple[BoundLimit, int, int]], ident: str, *, once_for_ms: int | None
) -> Steps:
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
            if reply == NOT_RESTORED:
                health.fallback.owe(ident, _owed(group), once=once_for_ms is not None)


def concluding(health: Health, rows: Sequence[tuple[BoundLimit, int, int]], where: RecordKeys) -> Steps:
    """
    Yield the commands that correct the charges of a recorded reservation and remove its record, as :func:`correcting`
    does.

    Nothing is done if the record is gone, since the reservation was settled before.

    Args:
        rows: As for :func:`correcting`, at least one.
        where: Where the reservation is recorded.
    Returns:
        Whether the record was gone.
    """
    from enforcement.plan.records import conclude  # most processes record nothing

    now_us, gone = health.now_us(), False
    for group in health.together(rows):
        key = group[0][0].key
        if len(group) < len(rows) and not where.lies_beside(key):  # the other slots of a cluster know no record
            yield from correcting(health, group, where.ident, once_for_ms=REMEMBERED_MS)
            continue
        if health.is_away(key):
            for bound, delta, mark in group:
                health.fallback.amend(bound, delta, mark, now_us, owed=False)
            health.fallback.owe(where.ident, _owed(group), once=False, where=where)
            continue
        corrections = [Correction(b.key, b.spec(now_us), delta, mark) for b, delta, mark in group]
        marker, clock = marker_beside(corrections[0].key, where.ident), health.clock and health.clock()
        command = commands.settle(corrections, marker, clock, ident=where.ident, once_for_ms=None)
        try:
            reply = yield resp.pack(conclude(where, command))
        except StoreError as exc:
            health.failed(exc)
            health.fallback.owe(where.ident, _owed(group), once=False, where=where)
            health.wake()
        else:
            gone = gone or reply == ALREADY_SETTLED
            if reply == NOT_RESTORED:
                health.fallback.owe(where.ident, _owed(group), once=False, where=where)
    return gone


def _owed(rows: Sequence[tuple[BoundLimit, int, int]]) -> list[tuple[BoundLimit, int, int]]:
    """Return for each counter its limit, the mark of the window, and the permits to add, as the fallback keeps them."""
    return [(bound, mark, delta) for bound, delta, mark in rows]


__all__ = ["concluding", "correcting"]
