"""
Whether the store is available, and how this process returns to it.

Decisions report failed calls here. The background thread reports when it finds that the store is unavailable or back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final

from enforcement.failover.fallback import Fallback
from enforcement.failover.journal import ReplayBatch
from enforcement.failover.latest_replies import AnsweredPlan, Known, LatestReplies
from enforcement.failover.look_ups import LookUps
from enforcement.failover.lost_counters import LostCounters
from enforcement.failover.probe import DecisionProbe
from enforcement.failover.replay import JournalReplay, ReplayPace
from enforcement.model.keys import Keys
from enforcement.plan.binding import BoundLimit
from enforcement.plan.plan import Plan
from enforcement.plan.reply import Reply
from enforcement.plan.request import Request
from enforcement.store.connector import IsReady, StoreConnector
from enforcement.store.errors import FULL, LibraryMissing, StoreError

BACKGROUND_BUDGET: Final = 1.0


class Health:
    """
    Tracks whether the store is available to this process, and leads the return to it.

    Args:
        connector: Reaches the store.
        keys: The keys of the store.
        fallback: Decides while the store is unavailable.
        timeout: Seconds that a decision may take.
        lookup: Seconds that a look-up of a token may take.
        clock: Returns the time of a test in microseconds. None for the store's time.
        store_now_us: Returns the store's time, as far as it is known.
        fleet: Returns how many instances share the quotas, at least 1.
        plans: Returns all plans that this process keeps.
        doubt: Has the background thread try a decision soon.
        wake: Has the background thread check the store at once.
        count_failure: Counts a failed call by its cause.

    Attributes:
        breaker: That of the whole store; see :class:`~enforcement.store.connector.StoreConnector`.
        on_recovery: Called when the store decides again.
        look_ups: Knows whether tokens can be looked up.
        replies: Knows what the store said last about each counter.
        lost_counters: Durable counters that the store has lost.
        background: A connection for the background threads.
        now_us: Returns the time for decisions in microseconds.
    """

    def __init__(
        self,
        connector: StoreConnector,
        keys: Keys,
        fallback: Fallback,
        *,
        timeout: float,
        lookup: float,
        clock: Callable[[], int] | None,
        store_now_us: Callable[[], int],
        fleet: Callable[[], int],
        plans: Callable[[], Iterable[AnsweredPlan]],
        doubt: Callable[[], None],
        wake: Callable[[], None],
        count_failure: Callable[[str], None],
    ) -> None:
        self.connector = connector
        self.fallback = fallback
        self.clock = clock
        self.wake = wake
        self._doubt = doubt
        self._fleet = fleet
        self.breaker = connector.breaker
        self.on_recovery: Callable[[], None] = lambda: None
        self.background = connector.pipe(BACKGROUND_BUDGET)
        self.now_us = store_now_us if clock is None else clock
        self._replay_pipe = connector.pipe(BACKGROUND_BUDGET, respects_breakers=False)
        self._probe = DecisionProbe(connector.pipe(timeout), keys)
        self.replies = LatestReplies(plans)
        self.look_ups = LookUps(connector.pipe(lookup, respects_breakers=False), keys, lookup)
        self._count_failure = count_failure
        self.lost_counters = LostCounters(self._replay_pipe)
        self._replay = JournalReplay(
            fallback,
            self._replay_pipe,
            self.lost_counters,
            self.now_us,
            clock,
            connector.load_library,
            together=not connector.one_slot_per_call,
        )
        self._pace = ReplayPace()
        connector.on_open = lambda cause: wake()
        connector.on_doubt = self._doubt
        connector.on_change = self._reconnect
        connector.replay = self._replay_some
        connector.on_return = self._return_to

    def start(self) -> None:
        """Allow the monitor of a cluster to run."""
        self.connector.start()

    def stop(self, timeout: float, agent_ended: bool) -> bool:
        """End the monitor, and return whether the thread that replays charges has ended, which may be the agent."""
        return self.connector.stop(timeout, agent_ended=agent_ended)

    def close(self, *, replays: bool) -> None:
        """Replay the remaining charges if *replays* is True, then close the connections."""
        if replays and self.fallback.owes():
            self._replay.run(self.connector.is_ready)
        for pipe in (self.background, self._replay_pipe, self._probe, self.look_ups):
            pipe.close()
        self.fallback.in_doubt.clear()

    def after_fork(self) -> None:
        """Drop the connections, counters and charges that a child process has inherited."""
        self.connector.after_fork()
        self.look_ups.after_fork()
        self.fallback.after_fork()
        self.replies.after_fork()

    # For decisions.

    def is_away(self, key: str) -> bool:
        """Return whether the server with this counter is unavailable."""
        return self.connector.is_away(key)

    def together(self, rows: Sequence[tuple[BoundLimit, int, int]]) -> Iterable[list[tuple[BoundLimit, int, int]]]:
        """Return the rows in groups, each of which one call may correct."""
        return self.connector.groups(rows, lambda row: row[0].tag)

    def failed(self, exc: StoreError) -> None:
        """Count a failed call if it was sent, and report it to the breaker if the whole store may be away."""
        if exc.cause != "away":  # such a call was not sent
            self._count_failure(exc.cause)
        self.connector.failed(exc)

    def failed_beside(self, exc: StoreError) -> None:
        """
        Count a failed call of the background or of a look-up if it was sent, and have a decision tried if the store may
        be away.

        It says nothing about decisions, which have other connections.
        """
        if exc.cause != "away":
            self._count_failure(exc.cause)
            if exc.away:
                self._doubt()

    def decide_alone(
        self, request: Request[Plan], known: Sequence[Known | None], error: StoreError | None
    ) -> tuple[Reply, str]:
        """
        Decide a request in this process, and return the reply and the reason.

        Args:
            known: What the store said last about each counter, see ``replies``.
            error: The call that failed, or None if there was no call.
        """
        self.connector.wake()  # so that the charge is replayed as soon as its node is back
        return self.fallback.decide(request, known, self.now_us(), self._fleet(), error=error)

    def is_open(self) -> bool:
        """Return whether all decisions are made without the store."""
        return self.breaker.open

    # For the background thread.

    def examine(self) -> bool:
        """
        Try a decision, count it for the breaker, and return False if the store may be unavailable.

        A store that is full has no connection for this. Decisions keep theirs, and report it if they have none.
        """
        self.replies.look_at_rest()
        exc = self.connector.examine(self._tried)
        if exc is not None:
            return exc.cause == FULL
        if not self.breaker.open:
            self.on_recovery()  # what cut a connection may have cut the idle ones of decisions, too
        return True

    def _tried(self) -> StoreError | None:
        exc = self._probe.error()
        if exc is not None:
            self._count_failure(exc.cause)
        return exc

    def obstacle(self) -> str:
        """
        Try a decision, and return the cause if an unavailable store still cannot make it, else an empty string.

        A missing function library is no obstacle, as the background thread loads it before the store is used.
        """
        self.replies.look_at_rest()
        exc = self._tried()
        if exc is None or isinstance(exc, LibraryMissing):
            return ""
        self.breaker.trip(exc.cause)
        self.look_ups.examine()
        return exc.cause

    def recovered(self) -> bool:
        """Let a store that answers again decide from now on, and return whether that works."""
        return self.connector.recover(self._return_to_store)

    def _return_to_store(self) -> bool:
        # Older connections may lead to a server that was replaced meanwhile, and that still answers.
        self.connector.forget()
        for pipe in (self._replay_pipe, self.background, self._probe):
            pipe.close()
        if self.breaker.open and (exc := self._probe.steady_error()) is not None:
            self._count_failure(exc.cause)
            self.breaker.trip(exc.cause)
            return False
        # The charges follow beside the traffic: a decision on a counter that is owed any replays them first.
        if not self._replay_some(lambda key: True):
            return False
        # A store that is full has just these places, and decisions need them next.
        for pipe in (self._replay_pipe, self._probe):
            pipe.close()
        self.on_recovery()
        self.breaker.close()
        self.look_ups.examine(at_once=True)
        self.fallback.rest(lambda key: not self.lost_counters.holds(key))
        self.replies.clear()
        return True

    def settle(self) -> None:
        """
        Replay the charges that the store could not accept before, use its restored counters again, and try a look-up.
        """
        if self.breaker.open:
            return
        self.look_ups.examine()
        now = monotonic()
        if self.lost_counters.sets or self.fallback.owes():
            self.lost_counters.look(now)
            if self.connector.recover(lambda: self._replay_some(lambda key: True)):
                self.lost_counters.release(now, self.fallback.owed)

    def _replay_some(self, ready: IsReady) -> bool:
        """Replay as many charges as the pace allows, and return whether the store accepts them."""
        worked = self._replay.run(ready, self._pace.grant(monotonic()))
        if not self.fallback.owed:
            self._pace.rest()
        return worked

    # Before a decision on a counter that is owed charges.

    def may_replay(self) -> bool:
        """Return whether a decision may replay what is owed. If not, it is made without the store, as in the outage."""
        return self._pace.admits(monotonic())

    def owed_to(self, plan: Plan) -> list[ReplayBatch]:
        """
        Put what is owed to the counters of a plan into batches, and return those of the servers that are not away.
        """
        keys = [key for key in plan.keys if key in self.fallback.owed and not self.connector.is_away(key)]
        return self._replay.owed_to(keys)

    def replaying(self, batch: ReplayBatch) -> bytes:
        """Return the encoded call that replays a batch."""
        return self._replay.command(batch)

    def replayed(self, batch: ReplayBatch, reply: object) -> bool:
        """
        Drop a batch that was accepted and return True, or keep it and return False if the store lost its counters.
        """
        return self._replay.accepted(batch, reply)

    def not_replayed(self, batch: ReplayBatch, exc: StoreError) -> None:
        """Report a failed call that should have replayed a batch, and split or drop the batch if it was refused."""
        self.failed(exc)
        if exc.late is not None:
            exc.late.close()  # a second call of the same id is harmless, so nothing depends on the late reply
        if not exc.away:
            self._replay.refused(batch, exc)

    def _return_to(self, is_back: IsReady) -> None:
        """
        Call ``on_recovery``, and mark the counters of the nodes that are back, except lost ones, as counted by the
        store again.
        """
        self.on_recovery()
        self.fallback.rest(lambda key: is_back(key) and not self.lost_counters.holds(key))

    def _reconnect(self) -> None:
        """
        Close the connection to a primary that was replaced, so that the next call opens a new one, and call
        ``on_recovery``.
        """
        self.background.close()
        self.on_recovery()
