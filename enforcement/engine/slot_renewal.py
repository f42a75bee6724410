"""Renew the slots that open reservations hold."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final

from enforcement.logs import RateLimitedLogger
from enforcement.model.keys import marker_beside, together
from enforcement.plan import commands
from enforcement.plan.binding import BoundLimit
from enforcement.plan.commands import Correction, Steps
from enforcement.plan.reply import read_corrected
from enforcement.run_steps import run
from enforcement.state.reservation import HeldReservation
from enforcement.store import resp
from enforcement.store.connector import Pipe
from enforcement.store.errors import StoreError

logger = logging.getLogger("sluicegate.slots")

LONGEST_CALL_SECONDS: Final = 1.0


UNDO_SECONDS: Final = (0.1, 0.4, 1.5, 5.0, 15.0, 30.0)
"""When a reservation is given back that the store may still make, because its call got no reply: after each other."""
MAX_UNDOING: Final = 10_000
"""Further reservations are lost after their life, and keep their charge."""


class Undoing:
    """
    A reservation to give back if the store has made it, although its request was denied.

    Args:
        steps: Returns the commands that give it back, whose result is whether there was one.
        at: When that is tried next, in monotonic seconds.
    Attributes:
        tries: How often the store has replied that there is none.
    """

    __slots__ = ("at", "steps", "tries")

    def __init__(self, steps: Callable[[], Steps[object]], at: float) -> None:
        self.steps = steps
        self.at = at
        self.tries = 0


class SlotKeeper:
    """
    Keeps the slots of all open reservations of a process, and renews each three times in its lifetime. It also gives
    back what the store may have reserved for requests that were denied without its reply.

    One thread renews all of them. It runs only while there are any.

    Args:
        pipe: Reaches the store.
        renews: Whether to renew them. By a clock of a test, no slot expires by itself.
    """

    def __init__(self, pipe: Pipe, *, renews: bool = True) -> None:
        self._pipe = pipe
        self._renews = renews
        self._log = RateLimitedLogger(logger)
        self._begin()

    def _begin(self) -> None:
        self._open: dict[str, tuple[float, float, HeldReservation]] = {}  # id -> next renewal, interval, reservation
        self._held: dict[str, dict[str, int]] = {}  # key -> id -> slots
        self._undoing: dict[str, Undoing] = {}  # by the id of a reservation
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._looks_at = 0.0  # when the thread looks next at what is due, in monotonic seconds

    def after_fork(self) -> None:
        """Drop all reservations in a child process, as they belong to the parent."""
        self._begin()

    def stop(self, timeout: float) -> None:
        """
        End the thread, and wait at most *timeout* seconds for that.

        What is open then is renewed again once the limiter is started or makes another reservation.
        """
        with self._lock:
            self._stopped = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def go_on(self) -> None:
        """Renew again what was open when this was stopped."""
        with self._lock:
            if self._stopped and self._renews:
                self._stopped = False
                if self._open or self._undoing:
                    self._look_at(monotonic())

    def keep(self, reservation: HeldReservation) -> None:
        """
        Add a reservation, if it has slots or a record that ends, which are renewed in the background until it is
        dropped.
        """
        slots, life = reservation.slots(), reservation.life_seconds
        if not slots and not life:
            return
        lives = [life] if life else []
        if slots:
            lives += [bound.limit.window_seconds or 1 for bound, _ in slots]
        interval = min(lives) / 3
        with self._lock:
            for bound, count in slots:
                self._held.setdefault(bound.key, {})[reservation.ident] = count
            due = monotonic() + interval
            self._open[reservation.ident] = due, interval, reservation
            if self._renews:
                self._look_at(due)

    def _look_at(self, due: float) -> None:
        """Have the thread look at what is due then, in monotonic seconds, or before. The caller holds the lock."""
        self._stopped = False
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="sluicegate-slots", daemon=True)
            self._looks_at = due
            thread.start()
            self._thread = thread  # not before, as it may not start for lack of memory
        elif due < self._looks_at:  # to wake a thread costs more than all the rest of a reservation
            self._looks_at = due
            self._wake.notify()

    def undo(self, ident: str, steps: Callable[[], Steps[object]]) -> None:
        """
        Give back, in the background, a reservation that the store may have made or may still make.

        Args:
            ident: Its id.
            steps: Returns new commands that give it back, see :class:`Undoing`. They may raise StoreError.
        """
        with self._lock:
            if len(self._undoing) < MAX_UNDOING and self._renews:
                due = monotonic() + UNDO_SECONDS[0]
                self._undoing[ident] = Undoing(steps, due)
                self._look_at(due)

    def drop(self, reservation: HeldReservation) -> None:
        """Stop renewing the slots of a reservation, and remove it unless its record must not end yet."""
        with self._lock:
            if reservation.ident not in self._open:
                return
            if reservation.concluded or not reservation.life_seconds:
                del self._open[reservation.ident]
            self._let_go(reservation)

    def concluded(self, reservation: HeldReservation) -> None:
        """Remove a reservation that was settled, unless its slots are still to be renewed."""
        with self._lock:
            slots = reservation.slots()
            if reservation.left or not slots:
                self._open.pop(reservation.ident, None)
                if slots:
                    self._let_go(reservation)

    def _let_go(self, reservation: HeldReservation) -> None:
        """Forget the slots of a reservation. The caller holds the lock."""
        for bound, _ in reservation.slots():
            of_key = self._held.get(bound.key, {})
            of_key.pop(reservation.ident, None)
            if not of_key:
                self._held.pop(bound.key, None)

    def renew_soon(self) -> None:
        """Have all slots renewed now. Any thread may call this."""
        with self._lock:
            for ident, (_, interval, reservation) in self._open.items():
                self._open[ident] = monotonic(), interval, reservation
            self._wake.notify()

    def held(self, key: str) -> dict[str, int]:
        """Return how many slots of one counter each open reservation holds, as a new dictionary by its id."""
        with self._lock:
            return dict(self._held.get(key, ()))

    def recorded(self) -> int:
        """Return how many open reservations have a record in the store, which this process prolongs."""
        with self._lock:
            return sum(bool(reservation.life_seconds) for _, _, reservation in self._open.values())

    def _run(self) -> None:
        try:
            self._renew_until_idle()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None  # an error has ended it

    def _renew_until_idle(self) -> None:
        while True:
            with self._lock:
                times = [row[0] for row in self._open.values()] + [it.at for it in self._undoing.values()]
                self._looks_at = min(times, default=monotonic() + 60)
                if not self._stopped:  # it may have been stopped while it was not waiting
                    self._wake.wait(max(0.0, self._looks_at - monotonic()))
                if self._stopped or not (self._open or self._undoing):
                    self._thread = None  # the next reservation with slots starts another thread
                    return
            for interval, reservation in self._due():
                if not self._stopped:
                    self._renew(reservation, interval)
            self._undo_due()

    def _undo_due(self) -> None:
        """Try to give back what is due to be given back."""
        for ident, it in [row for row in list(self._undoing.items()) if row[1].at <= monotonic()]:
            if self._stopped:
                return
            try:
                done = run(it.steps(), self._pipe.call)
            except StoreError:
                it.at = monotonic() + UNDO_SECONDS[1]  # what the store did not see is no try
                continue
            it.tries += 1
            if done or it.tries == len(UNDO_SECONDS):
                with self._lock:
                    self._undoing.pop(ident, None)
            else:
                it.at = monotonic() + UNDO_SECONDS[it.tries]

    def _due(self) -> list[tuple[float, HeldReservation]]:
        """Return the reservations to renew now, each after its interval, and set the time of their next renewal."""
        now, due = monotonic(), []
        with self._lock:
            for ident, (at, interval, reservation) in self._open.items():
                if at <= now:
                    self._open[ident] = now + interval, interval, reservation
                    due.append((interval, reservation))
        return due

    def _renew(self, reservation: HeldReservation, interval: float) -> None:
        slots, ident = [] if reservation.left else reservation.renewing(), reservation.ident
        # A store that does not answer must not hold up the next renewal, which this process makes by itself if the
        # store is away by then. Else the slots would end here, and others would take them.
        deadline = monotonic() + min(interval, LONGEST_CALL_SECONDS)
        try:
            replies = [self._pipe.call_again(command, deadline - monotonic()) for command in _renewals(slots, ident)]
            renewed = sum(read_corrected(reply, None)[0] for reply in replies)
            if reservation.where is not None and reservation.life_seconds and not reservation.concluded:
                from enforcement.plan.records import prolong  # most processes record nothing

                command = resp.pack(prolong(reservation.where, reservation.life_seconds, None))
                self._pipe.call_again(command, deadline - monotonic())
        except StoreError as exc:
            self._log.warning(exc.cause, "Slots or reservations were not renewed (%s).", exc.cause)
        else:
            if renewed < sum(count for _, count in slots):
                self._log.warning("lost", "Slots expired in the store, and others have taken their place.")
        if slots and reservation.left:
            # The slots were freed meanwhile, perhaps before the renewal came, which has taken them again then.
            with contextlib.suppress(StoreError):
                for command in _releases(slots, ident):
                    self._pipe.call(command)


def _renewals(slots: Sequence[tuple[BoundLimit, int]], ident: str) -> Iterator[bytes]:
    """Yield the encoded commands that renew slots. There is one for each hash tag, as a cluster requires."""
    for group in together(slots, lambda slot: slot[0].tag):
        yield resp.pack(commands.renew(group, ident, None))


def _releases(slots: Sequence[tuple[BoundLimit, int]], ident: str) -> Iterator[bytes]:
    """Yield the commands that free slots. There is one for each hash tag."""
    for group in together(slots, lambda slot: slot[0].tag):
        corrections = [Correction(bound.key, bound.spec(0), -count, 0) for bound, count in group]
        marker = marker_beside(corrections[0].key, ident)
        yield resp.pack(commands.settle(corrections, marker, None, ident=ident, once_for_ms=None))
