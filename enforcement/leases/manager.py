"""Take permits ahead of requests, and give back to the store those that are not used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Final

from enforcement.failover.health import Health
from enforcement.model.lease_bounds import held_max, longest_charge
from enforcement.plan import commands
from enforcement.plan.commands import Correction, Steps
from enforcement.plan.reply import MARKED, NOT_RESTORED, Reply, read
from enforcement.state.counts import Cell
from enforcement.state.denial_cache import Denials
from enforcement.state.lease import IDLE_SECONDS, Grant, Lease, Permit, Remains
from enforcement.state.live_plan import LivePlan
from enforcement.state.reservation import new_ident
from enforcement.store import resp
from enforcement.store.errors import StoreError

SWEEP_SECONDS: Final = 0.1
REST_SECONDS: Final = 0.1
"""How long to wait before a lease is filled again if its limits had no permits left, or the store is unavailable."""
LATE_SECONDS: Final = 0.25
"""A server that took longer may have been replaced while it was held up, so that no other one knows of its reply."""
SHORTEST_REST_SECONDS: Final = 0.01
"""If the limits have permits again sooner than REST_SECONDS, the wait is only so long, but at least this."""


class LeaseKeeper:
    """
    Takes permits ahead of requests in a thread of its own, and gives back those that are not used.

    Several leases may use one counter, as a limit of a project applies to each of its tokens. Together they hold no
    more of it than one process may.

    Args:
        health: Whether the store is available. Its fallback keeps permits that could not be given back.
        denials: Forgotten when permits are given back.
        fleet: Returns how many instances share the quotas.

    Permits that the store has charged and that nobody has, because a reply was lost, count as held for as long as they
    stay charged. So lost replies do not take more than a process may hold, either.

    Attributes:
        by_parts: Counts the requests that several leases have decided together.
    """

    def __init__(self, health: Health, denials: Denials, *, fleet: Callable[[], int]) -> None:
        self._health = health
        self._denials = denials
        self._fleet = fleet
        self._pipe = health.background
        self._begin()

    def _begin(self) -> None:
        self._requested: queue.SimpleQueue[Lease[LivePlan] | None] = queue.SimpleQueue()
        self._held: dict[int, Lease[LivePlan]] = {}
        self._by_key: dict[str, set[Lease[LivePlan]]] = {}
        self._missing: dict[str, list[tuple[float, int]]] = {}
        self._lock = threading.Lock()
        self._used = self._requests = 0
        self.by_parts: Cell = [0]
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Drop all leases in a child process, as their permits belong to the parent."""
        self._begin()

    def ask(self, lease: Lease[LivePlan]) -> None:
        """Ask the background thread to fill a lease soon."""
        lease.asking = True
        if self._thread is None:
            self._start()
        self._requested.put(lease)

    def put_back(self, permit: Permit[LivePlan]) -> None:
        """Take back permits whose request was denied by its other limits."""
        lease = permit.lease
        with self._lock:
            most = self._most(lease, self._fleet())
        if not lease.put_back(permit, most) and not lease.asking:
            self.ask(lease)

    def outstanding(self) -> int:
        """Return how many permits this process holds and has not handed out."""
        return self.counts()[0]

    def counts(self) -> tuple[int, int, int]:
        """Return how many permits are held, and how many permits and requests were served since the process began."""
        with self._lock:
            for lease in self._held.values():
                self._add_up(lease)
            held = sum(lease.outstanding() for lease in self._held.values())
            return held, self._used, self._requests + self.by_parts[0]

    def count(self) -> None:
        """
        Add to the usage the permits that leases handed out to requests of cost 1 since the last call.

        A decision on a request of a greater cost does so itself.
        """
        for lease in list(self._held.values()):
            self._count(lease)

    def returning(self, keys: Sequence[str]) -> Steps[None]:
        """Yield the commands that give back the leased permits of these counters, before a reset. Raises StoreError."""
        with self._lock:
            leases = {lease for key in keys for lease in self._by_key.get(key, ())}
        for lease in leases:
            left = lease.pop_expired(inf)
            while left:
                try:
                    yield self._settlement(lease.plan, left[0], self._health.now_us())
                except StoreError as exc:
                    for at, remains in enumerate(left):
                        self._lost(lease.plan, remains, executed=exc.executed and at == 0)
                    raise
                del left[0]

    def close(self) -> None:
        """Give back all permits, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._requested.put(None)
            thread.join(1.0)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sluicegate-leases", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        sweep_at = monotonic() + SWEEP_SECONDS
        while True:
            if monotonic() >= sweep_at:  # also if there is always a request in the queue
                self._sweep(monotonic())
                sweep_at = monotonic() + SWEEP_SECONDS
            try:
                lease = self._requested.get(timeout=max(0.001, sweep_at - monotonic()))
            except queue.Empty:
                continue
            if lease is None:
                self._sweep(inf)
                return
            self._fill(lease)

    def _fill(self, lease: Lease[LivePlan]) -> None:
        try:
            self._give_back(lease, monotonic())
            if self._health.is_away(lease.plan.keys[0]):
                lease.rest(REST_SECONDS)
            elif not lease.full:
                self._take(lease)
        except StoreError as exc:
            self._health.failed_beside(exc)
            lease.rest(REST_SECONDS)
        finally:
            lease.none_come()
            lease.asking = False
        self._give_back(lease, monotonic())  # what was put back meanwhile, for which nobody asked

    def _take(self, lease: Lease[LivePlan]) -> None:
        lost, plan, began = self._health.lost_counters, lease.plan, monotonic()
        if lost.sets and plan.lies_in(lost.sets):
            return
        if not self._health.fallback.owed.keys().isdisjoint(plan.keys):
            return  # the permits run out, and then the next request replays what is owed to these counters
        if plan.unregistered and began >= plan.registered_until:
            return  # the permits run out, and then the next request registers the value again
        fleet = self._fleet()
        wanted = lease.wanted(self._most(lease, fleet))
        if wanted <= 0:
            return
        arguments = commands.lease_arguments(plan, wanted, 2 * fleet, self._health.now_us())
        owner = self._health.connector.owner_of(plan.keys[0])
        self._keep(lease)  # so that others on its counters take account of what is coming
        try:
            reply = read(self._pipe.call(resp.pack(arguments)), len(plan.bounds), MARKED)
        except StoreError as exc:
            if exc.executed:
                self._miss(plan, wanted)
            raise
        if monotonic() - began > LATE_SECONDS and self._is_replaced(plan, owner):
            self._miss(plan, reply.granted)
            lease.rest(REST_SECONDS)
            return
        if reply.decided:
            plan.heard(reply)
        if reply.granted <= 0:
            lease.rest(_rest_seconds(reply, len(plan.bounds)))
            return
        self._count(lease)
        # Measured from before the call, so that no permit is used after its window, however long the call took.
        lease.fill(Grant(reply.granted, began + lease.good_for(reply), reply))
        self._give_back(lease, monotonic())

    def _is_replaced(self, plan: LivePlan, owner: str) -> bool:
        """
        Return whether another server has the counters of a plan than this one, which has just answered late.

        It is asked once more: it decides requests that waited before it learns that it was replaced.
        """
        if not owner:
            return False
        nothing = (0, tuple(0 for _ in plan.bounds))
        self._pipe.call(self._settlement(plan, nothing, self._health.now_us()))
        return self._health.connector.owner_of(plan.keys[0]) != owner

    def _most(self, lease: Lease[LivePlan], fleet: int) -> int:
        """
        Return how many permits a lease may hold by its tightest limit, after those of other leases on its counters and
        those that nobody has.
        """
        return min(
            held_max(bound.limit.capacity, fleet)
            - sum(other.claimed() for other in self._by_key.get(bound.key, ()) if other is not lease)
            - (self._missing_of(bound.key) if self._missing else 0)
            for bound in lease.plan.bounds
        )

    def _miss(self, plan: LivePlan, permits: int) -> None:
        """Note permits that may be charged and that nobody can hand out or give back."""
        now = monotonic()
        for bound in plan.bounds:
            rows = [row for row in self._missing.get(bound.key, ()) if row[0] > now]
            self._missing[bound.key] = [*rows, (now + longest_charge(bound.limit), permits)]

    def _missing_of(self, key: str) -> int:
        now = monotonic()
        return sum(permits for until, permits in self._missing.get(key, ()) if until > now)

    def _sweep(self, now: float) -> None:
        """
        Give back permits that have ended, and let go of leases that have ended, are idle, or end soon and are not in
        use.
        """
        for lease in list(self._held.values()):
            idle = now - lease.idle_since(now)
            if idle > lease.idle_seconds or now >= lease.until or (idle > 0 and lease.until - now < IDLE_SECONDS):
                self._give_back(lease, inf)
                self._count(lease)
                self._let_go(lease)
            else:
                self._give_back(lease, now)

    def _keep(self, lease: Lease[LivePlan]) -> None:
        with self._lock:
            self._held[id(lease)] = lease
            for key in lease.plan.keys:
                self._by_key.setdefault(key, set()).add(lease)

    def _let_go(self, lease: Lease[LivePlan]) -> None:
        with self._lock:
            self._add_up(lease)
            self._held.pop(id(lease), None)
            for key in lease.plan.keys:
                others = self._by_key.get(key, set())
                others.discard(lease)
                if not others:
                    self._by_key.pop(key, None)

    def _add_up(self, lease: Lease[LivePlan]) -> None:
        permits, requests = lease.pop_served()
        self._used += permits
        if lease.decides:
            self._requests += requests

    def _count(self, lease: Lease[LivePlan]) -> None:
        plan, handed = lease.plan, lease.pop_uncounted()
        if handed and plan.usage is not None:
            plan.usage.passed(lease.reply.minute, 1, plan.ones, handed)

    def _give_back(self, lease: Lease[LivePlan], now: float) -> None:
        """
        Give back the permits left over at *now*, or add them to the journal if the store surely did not take them.
        """
        health, plan = self._health, lease.plan
        for remains in lease.pop_expired(now):
            if health.is_away(plan.keys[0]):
                self._owe(plan, remains)
                continue
            try:
                reply = self._pipe.call(self._settlement(plan, remains, health.now_us()))
            except StoreError as exc:
                health.failed_beside(exc)
                self._lost(plan, remains, executed=exc.executed)
                continue
            if reply == NOT_RESTORED:
                self._owe(plan, remains)
            self._denials.forget(plan.keys)

    def _lost(self, plan: LivePlan, remains: Remains, *, executed: bool) -> None:
        """
        Note permits that could not be given back.

        If the store may have executed the call, a second one could exceed the quota.
        """
        if executed:
            self._miss(plan, remains[0])
        else:
            self._owe(plan, remains)

    def _owe(self, plan: LivePlan, remains: Remains) -> None:
        permits, marks = remains
        rows = [(bound, mark, -permits) for bound, mark in zip(plan.bounds, marks, strict=True)]
        self._health.fallback.owe(new_ident(), rows, once=True)

    @staticmethod
    def _settlement(plan: LivePlan, remains: Remains, now_us: int) -> bytes:
        permits, marks = remains
        rows = zip(plan.bounds, plan.specs(now_us), marks, strict=True)
        corrections = [Correction(bound.key, spec, -permits, mark) for bound, spec, mark in rows]
        return resp.pack(commands.settle(corrections, plan.keys[0], None, ident="", once_for_ms=None))


def _rest_seconds(reply: Reply, count: int) -> float:
    """Return how many seconds to wait before the next call, after a reply on *count* limits that granted nothing."""
    if not reply.decided:  # the store lost the counters, so its reply says nothing about the limits
        return REST_SECONDS
    waits = [reply.more(i) for i in range(count) if reply.remaining(i) <= 0]
    if not waits or min(waits) < 0:
        return REST_SECONDS
    return min(REST_SECONDS, max(SHORTEST_REST_SECONDS, max(waits) / 1_000_000))
