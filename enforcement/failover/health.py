"""
Whether the store is there, what is owed to it, and how this process returns to it.

Decisions report failed calls here, and the background thread asks here when it finds the store away or back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final

from enforcement.failover.fallback import Fallback
from enforcement.failover.lost_counters import LostCounters
from enforcement.failover.probe import DecisionProbe
from enforcement.failover.replay import JournalReplay
from enforcement.model.keys import Keys
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply
from enforcement.plan.request import Request
from enforcement.store.connector import IsReady, StoreConnector
from enforcement.store.errors import StoreError

BACKGROUND_BUDGET: Final = 1.0


class Health:
    """
    The store as one process sees it, and the way back to it.

    Args:
        timeout: Seconds that a decision may take.
        clock: A test's clock, microseconds; None: the store's.
        store_now_us: Returns the best idea of the store's time.
        fleet: Returns how many instances share the quotas, at least 1.
        wake: Has the background thread look after the store at once.
        count_failure: Counts a failed call by its cause.

    Attributes:
        breaker: That of the whole store; see :class:`~enforcement.store.connector.StoreConnector`.
        on_recovery: Called when the store decides again.
    """

    def __init__(
        self,
        connector: StoreConnector,
        keys: Keys,
        fallback: Fallback,
        *,
        timeout: float,
        clock: Callable[[], int] | None,
        store_now_us: Callable[[], int],
        fleet: Callable[[], int],
        wake: Callable[[], None],
        count_failure: Callable[[str], None],
    ) -> None:
        self.connector = connector
        self.fallback = fallback
        self.clock = clock
        self.wake = wake
        self._fleet = fleet
        self.breaker = connector.breaker
        self.on_recovery: Callable[[], None] = lambda: None
        self.background = connector.pipe(BACKGROUND_BUDGET)
        self.now_us = store_now_us if clock is None else clock
        self._paying = connector.pipe(BACKGROUND_BUDGET, respects_breakers=False)
        self._probe = DecisionProbe(connector.pipe(timeout), keys)
        self._count_failure = count_failure
        self.lost_counters = LostCounters(self._paying)
        self._replay = JournalReplay(
            fallback, self._paying, self.lost_counters, self.now_us, clock, connector.load_library
        )
        connector.on_open = lambda cause: wake()
        connector.on_change = self._reconnect
        connector.replay = self._replay.pay
        connector.on_return = self._return_to

    def start(self) -> None:
        """Start watching."""
        self.connector.start()

    def stop(self, timeout: float, agent_ended: bool) -> bool:
        """Stop watching, and return whether the thread that pays has ended: a cluster's monitor, else the agent."""
        return self.connector.stop(timeout, agent_ended=agent_ended)

    def close(self, *, pays: bool) -> None:
        """Close connections; before that pay what is owed, if *pays*."""
        if pays and self.fallback.owes():
            self._replay.pay(self.connector.is_ready)
        for pipe in (self.background, self._paying, self._probe):
            pipe.close()
        self.fallback.in_doubt.clear()

    def after_fork(self) -> None:
        """Begin anew in a child process."""
        self.connector.after_fork()
        self.fallback.after_fork()

    # What decisions ask and report.

    def is_away(self, key: str) -> bool:
        """Return whether the counter of this key is out of reach now."""
        return self.connector.is_away(key)

    def together(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> Iterable[list[tuple[BoundLimit, int, int]]]:
        """Return the rows in groups that one call may correct."""
        return self.connector.groups(rows, lambda row: row[0].tag)

    def failed(self, exc: StoreError) -> None:
        """Count a failed call, unless it only concerns itself, or one node of a cluster: that was counted there."""
        if exc.cause != "away":  # that one was not sent at all
            self._count_failure(exc.cause)
        self.connector.failed(exc)

    def decide_alone(self, request: Request[Plan], last: Reply | None, error: StoreError | None) -> tuple[Reply, str]:
        """
        Decide without the store.

        Args:
            last: The latest reply of the store to this plan; None: there is none.
            error: The call that failed; None: the store was not asked.
        Returns:
            The reply of this process, with marks, and the reason.
        """
        self.connector.wake()  # what is admitted now is paid as soon as its node can be
        return self.fallback.decide(request, last, self.now_us(), self._fleet(), trouble=error)

    def is_open(self) -> bool:
        """Return whether all decisions are made without the store."""
        return self.breaker.open

    def outages(self) -> tuple[int, int]:
        """Return how many servers of the store are away now, and how often one was found so."""
        return self.connector.outages()

    # What the background thread asks and reports.

    def lost(self, reason: str) -> None:
        """Note that the background found the store away before a request did."""
        self.breaker.trip(reason)

    def recovered(self) -> bool:
        """
        Pay what is owed to a store that answers again, and decide with it from now on.

        Returns:
            Whether it answers well enough for that.
        """
        return self.connector.recover(self._return_to_store)

    def _return_to_store(self) -> bool:
        # Whatever was connected before may lead to a server that was replaced meanwhile, and answers nevertheless.
        self.connector.forget()
        for pipe in (self._paying, self.background, self._probe):
            pipe.close()
        if self.breaker.open and (exc := self._probe.trouble()) is not None:
            self._count_failure(exc.cause)
            self.breaker.trip(exc.cause)
            return False
        if not self._replay.pay(lambda key: True):
            return False
        self.on_recovery()
        self.breaker.close()
        self.fallback.rest(lambda key: not self.lost_counters.holds(key))
        return True

    def settle(self) -> None:
        """Pay what the store could not take before."""
        if self.breaker.open:
            return
        now = monotonic()
        if self.lost_counters.sets or self.fallback.owes():
            self.lost_counters.look(now)
            if self.connector.recover(lambda: self._replay.pay(lambda key: True)):
                self.lost_counters.release(now)

    def _return_to(self, is_back: IsReady) -> None:
        """Decide with the store again for the counters of nodes that are back."""
        self.on_recovery()
        self.fallback.rest(lambda key: is_back(key) and not self.lost_counters.holds(key))

    def _reconnect(self) -> None:
        """Leave the connections to a primary that was replaced."""
        self.background.close()
        self.on_recovery()


__all__ = ["Health"]
