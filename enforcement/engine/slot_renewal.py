"""The thread that renews the slots which open reservations hold, and what this process knows of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from time import monotonic

from enforcement.logs import RateLimitedLogger
from enforcement.model.keys import together
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.state.reservation import Reservation
from enforcement.store import resp
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

logger = logging.getLogger("sluicegate.slots")


class SlotKeeper:
    """
    Knows the slots of all open reservations of a process, and renews each three times a lifetime, in one thread.

    Args:
        pipe: What renewals are sent by.
        renews: Whether it does; a test's clock stands still, and so do its slots.
    """

    def __init__(self, pipe: Pipe, *, renews: bool = True) -> None:
        self._pipe = pipe
        self._renews = renews
        self._say = RateLimitedLogger(logger)
        self._begin()

    def _begin(self) -> None:
        self._open: dict[str, tuple[float, float, Reservation]] = {}  # id -> next renewal, interval, reservation
        self._held: dict[str, dict[str, int]] = {}  # key -> id -> slots
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Begin anew in a child process: open reservations are the parent's."""
        self._begin()

    def keep(self, reservation: Reservation) -> None:
        """Keep the slots of a reservation until it is dropped."""
        slots = reservation.slots()
        if not slots:
            return
        interval = min(bound.limit.window_seconds or 1 for bound, _ in slots) / 3
        with self._wake:
            for bound, count in slots:
                self._held.setdefault(bound.key, {})[reservation.ident] = count
            self._open[reservation.ident] = monotonic() + interval, interval, reservation
            if not self._renews:
                return
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="sluicegate-slots", daemon=True)
                self._thread.start()
            self._wake.notify()

    def drop(self, reservation: Reservation) -> None:
        """Keep them no longer."""
        with self._wake:
            if self._open.pop(reservation.ident, None) is None:
                return
            for bound, _ in reservation.slots():
                of_key = self._held[bound.key]
                del of_key[reservation.ident]
                if not of_key:
                    del self._held[bound.key]

    def held(self, key: str) -> dict[str, int]:
        """Return the slots of one counter that open reservations hold: how many under each id."""
        with self._wake:
            return dict(self._held.get(key, ()))

    def _run(self) -> None:
        while True:
            with self._wake:
                due = min((row[0] for row in list(self._open.values())), default=monotonic() + 60)
                self._wake.wait(max(0.0, due - monotonic()))
                if not self._open:
                    self._thread = None  # nobody holds slots: the next one starts a thread anew
                    return
            for reservation in self._due():
                self._renew(reservation)

    def _due(self) -> list[Reservation]:
        """Return what is to be renewed now, and set the time of its next renewal."""
        now, due = monotonic(), []
        with self._wake:
            for ident, (at, interval, reservation) in self._open.items():
                if at <= now:
                    self._open[ident] = now + interval, interval, reservation
                    due.append(reservation)
        return due

    def _renew(self, reservation: Reservation) -> None:
        slots = reservation.renewing()
        try:
            renewed = sum(self._pipe.call(command) for command in _renewals(slots, reservation.ident))
        except StoreError as exc:
            self._say.warning(exc.cause, "Slots were not renewed (%s).", exc.cause)
        else:
            if renewed < sum(count for _, count in slots):
                self._say.warning("lost", "Slots were lost: they outlived their lifetime without a renewal.")


def _renewals(slots: Sequence[tuple[BoundLimit, int]], ident: str) -> Iterator[bytes]:
    """Give the commands that renew slots: one for each hash tag, for a cluster takes no other."""
    for some in together(slots, lambda slot: slot[0].tag):
        yield resp.pack(commands.renew(some, ident, None))


__all__ = ["SlotKeeper"]
