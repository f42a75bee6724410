"""The thread that takes permits ahead, refills leases at low water, and gives back what is not used."""

from __future__ import annotations

import queue
import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement import protocol
from enforcement.leases import Lease
from enforcement.place import Pipe
from enforcement.protocol import Correction, StoreTrouble

if TYPE_CHECKING:
    from enforcement.engine import Engine

SWEEP_SECONDS: Final = 0.1
IDLE_SECONDS: Final = 0.3


class LeaseKeeper:
    """
    The thread that takes permits ahead and gives back what is not used.

    Args:
        engine: Whose clock, fleet and breaker count.
        pipe: A connection of its own.
    """

    def __init__(self, engine: Engine, pipe: Pipe) -> None:
        self._engine = engine
        self._pipe = pipe
        self._wishes: queue.SimpleQueue[Lease | None] = queue.SimpleQueue()
        self._held: dict[int, Lease] = {}
        self._lock = threading.Lock()
        self._used = self._requests = 0
        self._thread: threading.Thread | None = None

    def ask(self, lease: Lease) -> None:
        """Have a lease filled soon."""
        lease.asking = True
        if self._thread is None:
            self._start()
        self._wishes.put(lease)

    def outstanding(self) -> int:
        """Return the permits that this process holds and has not handed out."""
        return self.counts()[0]

    def counts(self) -> tuple[int, int, int]:
        """Return the permits at hand, and since the process began: permits handed out, requests that got them."""
        with self._lock:
            for lease in self._held.values():
                self._add_up(lease)
            return sum(lease.left for lease in self._held.values()), self._used, self._requests

    def count(self) -> None:
        """Count what was handed out. Decisions on a lease leave that to whoever fills it, or reports usage."""
        for lease in list(self._held.values()):
            self._count(lease)

    def close(self) -> None:
        """Give everything back."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._wishes.put(None)
            thread.join(1.0)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sluicegate-leases", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        sweep_at = monotonic() + SWEEP_SECONDS
        while True:
            if monotonic() >= sweep_at:  # also where wishes never cease
                self._sweep(monotonic())
                sweep_at = monotonic() + SWEEP_SECONDS
            try:
                lease = self._wishes.get(timeout=max(0.001, sweep_at - monotonic()))
            except queue.Empty:
                continue
            if lease is None:
                self._sweep(float("inf"))
                return
            self._fill(lease)

    def _fill(self, lease: Lease) -> None:
        try:
            plan = lease.plan
            if plan.spread and self._engine.place.routes is not None:
                plan.lease = None  # no single call takes from several slots
                return
            if not plan.merges_leases:
                self._give_back(lease)
            self._take(lease)
        except StoreTrouble as exc:
            self._engine.failed(exc)
        finally:
            lease.asking = False

    def _take(self, lease: Lease) -> None:
        engine, plan, began = self._engine, lease.plan, monotonic()
        if engine.unrestored.sets and plan.lies_in(engine.unrestored.sets):
            return
        if plan.newcomers and began >= plan.enrolled_until:
            return  # permits run out then, and the next request enrols the value again
        fleet = max(1, engine.agent.fleet_size)
        wanted = lease.wanted(fleet)
        if wanted <= 0:
            return
        arguments = protocol.lease_arguments(plan, wanted, 2 * fleet, engine.now_us())
        reply = protocol.numbers(self._pipe.call(protocol.pack(arguments)))
        if reply[0] <= 0:
            return
        # Counted from before the call, so that no permit outlives its window by the time the reply took.
        until = began + lease.good_for(reply)
        if lease.marks and lease.marks != tuple(reply[6::5]) and plan.merges_leases:
            self._give_back(lease)
        self._count(lease)
        with self._lock:
            self._held[id(lease)] = lease
        lease.fill(reply[0], until, reply)

    def _sweep(self, now: float) -> None:
        """Give back what is idle or about to die."""
        for lease in list(self._held.values()):
            if now - lease.idle_since(now) > IDLE_SECONDS or lease.until - now < IDLE_SECONDS:
                try:
                    self._give_back(lease)
                except StoreTrouble as exc:
                    self._engine.failed(exc)
                self._count(lease)
                with self._lock:
                    self._add_up(lease)
                    self._held.pop(id(lease), None)

    def _add_up(self, lease: Lease) -> None:
        permits, requests = lease.news()
        self._used += permits
        self._requests += requests

    def _count(self, lease: Lease) -> None:
        plan, handed = lease.plan, lease.handed()
        if handed and plan.usage is not None:
            plan.usage.passed(lease.reply[1] // 60_000_000, 1, plan.ones, handed)

    def _give_back(self, lease: Lease) -> None:
        left, marks = lease.empty(), lease.marks
        if not left:
            return
        plan, now_us = lease.plan, self._engine.now_us()
        rows = zip(plan.bounds, plan.specs(now_us), marks, strict=True)
        corrections = [Correction(bound.key, spec, -left, mark) for bound, spec, mark in rows]
        arguments = protocol.settle(corrections, plan.keys[0], None, ident="", once_for_ms=None)
        self._pipe.call(protocol.pack(arguments))
        self._engine.denials.forget()
