"""The background thread that repairs a cluster's table of slots, and detects that unavailable nodes are back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from enforcement.lua import function
from enforcement.store.absence import TRIES, PacedAbsence
from enforcement.store.breaker import jittered
from enforcement.store.cluster.slot_map import Node, SlotMap
from enforcement.store.connection import ask_once
from enforcement.store.errors import LibraryMissing, StoreError
from enforcement.store.resp import pack

FIRST_ROUND_SECONDS: Final = 0.05
LONGEST_ROUND_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 0.5

_CLUSTER_INFO: Final = pack(("CLUSTER", "INFO"))
# A decision about no limit: any node answers it, unless it would refuse every other decision as well.
_EMPTY_DECISION: Final = pack(("FCALL", function("decide"), 0, "", "1", ""))


class ClusterMonitor:
    """
    A thread that runs while the table of slots is incomplete, or a node is unavailable.

    Args:
        slot_map: The table to repair.
        budget: Seconds that a decision may take. A node that needs longer is not back.
        replay: Called in each round with the nodes that answer again, before decisions use them. It replays what is
            owed to these nodes, and to all others that answer. It returns False if one of them failed.
    """

    def __init__(self, slot_map: SlotMap, budget: float, replay: Callable[[Sequence[Node]], bool]) -> None:
        self._slot_map = slot_map
        self._budget = budget
        self._replay = replay
        self._requested = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._absences: WeakKeyDictionary[Node, PacedAbsence] = WeakKeyDictionary()

    def wake(self) -> None:
        """Have the monitor's thread check the cluster soon. Any thread may call this, as often as it likes."""
        if self._requested.is_set():
            return
        with self._lock:
            self._requested.set()
            if (self._thread is None or not self._thread.is_alive()) and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="sluicegate-cluster", daemon=True)
                self._thread.start()

    def start(self) -> None:
        """Allow the thread to run when it is woken, also after ``stop()``."""
        self._stopping.clear()

    def stop(self, timeout: float = 2.0) -> bool:
        """End the thread if it runs, and return whether it ended within *timeout* seconds."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        self._requested.clear()
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        rounds = 0
        while not self._is_done():
            longest = min(LONGEST_ROUND_SECONDS, FIRST_ROUND_SECONDS * 2.0 ** min(rounds, 10))
            rounds += 1
            self._stopping.wait(min(jittered(longest), self._until_probe()))
            self._requested.clear()
            self._check()

    def _check(self) -> None:
        slot_map = self._slot_map
        slot_map.refresh(PROBE_SECONDS)
        self._try_doubted()
        back = [node for node in slot_map.away() if not self._stopping.is_set() and self._is_back(node)]
        if not self._stopping.is_set() and self._replay(back):
            for node in back:
                self._absences[node].end()
                node.breaker.close()
        slot_map.open = bool(slot_map.away())

    def _is_back(self, node: Node) -> bool:
        """Return whether a node that was away decides again, or False without a try if it was tried just before."""
        absence = self._absences.get(node)
        if absence is None:
            absence = self._absences[node] = PacedAbsence(monotonic)
        return absence.is_due() and self._probe(node)

    def _until_probe(self) -> float:
        """Return the seconds until the next node that is away may be tried, at least a hundredth."""
        dues = [self._absences[node].due_at for node in self._slot_map.away() if node in self._absences]
        return max(0.01, min(dues, default=inf) - monotonic())

    def _try_doubted(self) -> None:
        """Try a decision on each node that failed a call, and count the result for the breaker of the node."""
        slot_map = self._slot_map
        for host_port in list(slot_map.doubted):
            slot_map.doubted.discard(host_port)
            node = slot_map.nodes.get(host_port)
            if node is None or node.breaker.open or self._stopping.is_set():
                continue
            if (exc := self._error(node)) is None:
                node.breaker.succeeded()
            else:
                node.breaker.failed(exc.cause)  # this doubts the node again, until its breaker opens

    def _probe(self, node: Node) -> bool:
        """Return whether a node serves its slots and makes decisions in time."""
        try:
            reply = ask_once(node.address, _CLUSTER_INFO, PROBE_SECONDS, node.patience)
        except StoreError:
            return False
        return isinstance(reply, bytes) and b"cluster_state:ok" in reply and self._decides(node)

    def _decides(self, node: Node) -> bool:
        """Return whether a node makes several decisions one after the other, each in time."""
        for _ in range(TRIES):
            began = monotonic()
            # A reply in time for its connection may be too late here, as timeouts are counted in the kernel's ticks.
            if self._error(node) is not None or monotonic() - began > self._budget:
                return False
        return True

    def _error(self, node: Node) -> StoreError | None:
        """
        Ask a node for a decision, and return the StoreError if it cannot decide within the budget, or None if it can.
        """
        try:
            ask_once(node.address, _EMPTY_DECISION, self._budget, node.patience)
        except LibraryMissing:
            return None  # the next decision loads the library
        except StoreError as exc:
            return exc if exc.away else None
        return None

    def _is_done(self) -> bool:
        with self._lock:
            slot_map = self._slot_map
            needed = self._requested.is_set() or slot_map.away() or slot_map.doubted or not slot_map.complete
            if self._stopping.is_set() or not needed:
                self._thread = None
                return True
            return False
