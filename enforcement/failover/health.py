"""
Whether the store is there, what is owed to it, and how this process returns to it.

Decisions report failed calls here, and the background thread asks here when it finds the store away or back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from enforcement.failover.fallback import Fallback
from enforcement.failover.lost_counters import LostCounters
from enforcement.failover.probe import DecisionProbe
from enforcement.failover.replay import JournalReplay
from enforcement.model.keys import Keys, together
from enforcement.plan.commands import StoreError
from enforcement.plan.plan import BoundLimit
from enforcement.plan.reply import Reply
from enforcement.plan.request import Request
from enforcement.state.counts import DecisionCounts
from enforcement.store.breaker import Breaker
from enforcement.store.connector import StoreConnector
from enforcement.store.slot_map import ClusterMonitor, Node

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

    Attributes:
        breaker: Of a store that is away as a whole. On a cluster it stays closed: there each node has one.
        on_recovery: Called when the store decides again.
    """

    def __init__(
        self,
        connector: StoreConnector,
        keys: Keys,
        fallback: Fallback,
        counts: DecisionCounts,
        *,
        timeout: float,
        clock: Callable[[], int] | None,
        store_now_us: Callable[[], int],
        fleet: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self.connector = connector
        self.fallback = fallback
        self.clock = clock
        self.wake = wake
        self._fleet = fleet
        self.breaker = Breaker(on_open=lambda cause: wake())
        self.on_recovery: Callable[[], None] = lambda: None
        self.background = connector.pipe(BACKGROUND_BUDGET)
        self.now_us = store_now_us if clock is None else clock
        self._paying = connector.pipe(BACKGROUND_BUDGET, heeds=False)
        self._probe = DecisionProbe(connector.pipe(timeout), keys)
        self._counts = counts
        self.lost_counters = LostCounters(self._paying)
        self._replay = JournalReplay(fallback, self._paying, self.lost_counters, self.now_us, clock)
        if connector.sentinels is not None:
            connector.sentinels.on_change = self._reconnect
        self._watch_nodes()

    def _watch_nodes(self) -> None:
        """Make the thread that watches the nodes of a cluster."""
        self._monitor: ClusterMonitor | None = None
        if (slot_map := self.connector.slot_map) is not None:
            self._monitor = ClusterMonitor(slot_map, self._pay_nodes)
            slot_map.on_trouble = self._monitor.wake

    def start(self) -> None:
        """Start watching."""
        if self._monitor is not None:
            self._monitor.start()

    def stop(self, timeout: float, agent_ended: bool) -> bool:
        """Stop watching, and return whether the thread that pays has ended: a cluster's monitor, else the agent."""
        return agent_ended if self._monitor is None else self._monitor.stop(timeout)

    def close(self, *, pays: bool) -> None:
        """Close connections; before that pay what is owed, if *pays*."""
        if pays and self.fallback.owes():
            slot_map = self.connector.slot_map  # a single store is tried in any case: it may be back and not found yet
            self._replay.pay(lambda key: slot_map is None or not slot_map.is_away(key))
        for pipe in (self.background, self._paying, self._probe):
            pipe.close()
        self.fallback.in_doubt.clear()

    def after_fork(self) -> None:
        """Begin anew in a child process."""
        self.connector.after_fork()
        self.breaker.after_fork()
        self._watch_nodes()
        self.fallback.after_fork()

    # What decisions ask and report.

    def is_away(self, key: str) -> bool:
        """Return whether the counter of this key is out of reach now."""
        return self.breaker.open if self.connector.slot_map is None else self.connector.slot_map.is_away(key)

    def together(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> list[list[tuple[BoundLimit, int, int]]]:
        """Return the rows in groups that one call may correct: all, or on a cluster those of one hash tag."""
        return [list(rows)] if self.connector.slot_map is None else together(rows, lambda row: row[0].tag)

    def failed(self, exc: StoreError) -> None:
        """Count a failed call, unless it only concerns itself, or one node of a cluster: that was counted there."""
        if exc.cause != "away":  # that one was not sent at all
            self._counts.failed(exc.cause)
        if exc.away and self.connector.slot_map is None:
            self.breaker.failed(exc.cause)

    def decide_alone(self, request: Request, error: StoreError | None) -> tuple[Reply, str]:
        """
        Decide without the store.

        Args:
            error: The call that failed; None: the store was not asked.
        Returns:
            The reply of this process, with marks, and the reason.
        """
        if self._monitor is not None:
            self._monitor.wake()  # what is admitted now is paid as soon as its node can be
        return self.fallback.decide(request, self.now_us(), self._fleet(), trouble=error)

    def is_open(self) -> bool:
        """Return whether decisions are made without the store, or without a node of a cluster."""
        return self.breaker.open if self.connector.slot_map is None else bool(self.connector.slot_map.away())

    def outages(self) -> tuple[int, int]:
        """Return how many servers of the store are away now, and how often one was found so."""
        slot_map = self.connector.slot_map
        if slot_map is None:
            return int(self.breaker.open), self.breaker.openings
        return len(slot_map.away()), slot_map.openings

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
        if self._monitor is not None:
            self._monitor.wake()
            return True
        # Whatever was connected before may lead to a server that was replaced meanwhile, and answers nevertheless.
        self.connector.forget()
        for pipe in (self._paying, self.background, self._probe):
            pipe.close()
        if self.breaker.open and (exc := self._probe.trouble()) is not None:
            self._counts.failed(exc.cause)
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
            if self._monitor is not None:
                self._monitor.wake()
            elif not self._replay.pay(lambda key: True):
                return
            self.lost_counters.release(now)

    def _pay_nodes(self, back: Sequence[Node]) -> bool:
        """Pay to the nodes of a cluster that are back, and to all others that answer."""
        slot_map = self.connector.slot_map
        assert slot_map is not None
        if not self._replay.pay(lambda key: not slot_map.is_away(key, back)):
            return False
        if back:
            self.on_recovery()
            self.fallback.rest(lambda key: not (slot_map.is_away(key, back) or self.lost_counters.holds(key)))
        return True

    def _reconnect(self) -> None:
        """Leave the connections to a primary that was replaced."""
        self.background.close()
        self.on_recovery()


__all__ = ["Health"]
