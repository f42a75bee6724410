"""
How a process reaches its store, be it a single server, the primary behind sentinels, or a cluster.

Each kind is a strategy with the interface of :class:`StoreConnector`, so that its callers need not know which one
they have.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from enforcement.lua import load_command
from enforcement.model.keys import together
from enforcement.store.address import check_sockets
from enforcement.store.aio_connection import AsyncPipe
from enforcement.store.base_client import StoreClient
from enforcement.store.breaker import Breaker
from enforcement.store.client import client_of, node_client, primary_client
from enforcement.store.cluster.client import ClusterClient
from enforcement.store.cluster.connection import AsyncClusterPipe, ClusterPipe
from enforcement.store.cluster.monitor import ClusterMonitor
from enforcement.store.cluster.slot_map import Node, SlotMap, slot_of
from enforcement.store.connection import SyncPipe, ask_once
from enforcement.store.credentials import Credentials
from enforcement.store.duty_failures import DutyFailures, NodeDutyFailures
from enforcement.store.errors import FULL, StoreError
from enforcement.store.resp import pack
from enforcement.store.sentinel import Sentinels
from enforcement.store.topology import Topology

LOAD_SECONDS: Final = 1.0
"""Time limit for loading the function library into one node."""

T = TypeVar("T")
Pipe = SyncPipe | ClusterPipe
AwaitedPipe = AsyncPipe | AsyncClusterPipe
IsReady = Callable[[str], bool]
"""Returns whether charges to the counter with this key can be replayed now."""


class StoreConnector(ABC):
    """
    The store of one limiter.

    The attributes that begin with ``on_``, and ``replay``, are set by the limiter.

    Attributes:
        breaker: The circuit breaker of the whole store, which every decision reads. On a cluster it stays closed, as
            each node has its own.
        gate: Its ``open`` is whether any server may be unavailable, and read by every decision.
        one_slot_per_call: Whether one call only reaches keys that share a hash tag.
        duty_failures: What the background thread does when a duty fails.
        on_open: Called with the cause when ``breaker`` opens.
        on_doubt: Called after a failure that does not open ``breaker``, to have a decision tried in the background.
        on_change: Called, in any thread, when another server has become the primary.
        on_return: Called in the monitor's thread when nodes are back; the argument returns whether a counter is there.
        replay: Replays charges to the counters that are ready. It returns False if the store does not take them.
    """

    one_slot_per_call = False
    duty_failures: DutyFailures

    def __init__(self, budget: float) -> None:
        self.on_open: Callable[[str], None] = lambda cause: None
        self.on_change: Callable[[], None] = lambda: None
        self.on_return: Callable[[IsReady], None] = lambda is_back: None
        self.replay: Callable[[IsReady], bool] = lambda is_ready: True
        self.on_doubt: Callable[[], None] = lambda: None
        self.breaker = Breaker(
            on_open=lambda cause: self.on_open(cause), budget=budget, on_doubt=lambda: self.on_doubt()
        )
        self.gate: Breaker | SlotMap = self.breaker

    @abstractmethod
    def pipe(self, budget: float, *, respects_breakers: bool = True) -> Pipe:
        """
        Return a new pipe with the connections that threads use.

        Args:
            budget: Seconds that a call may take.
            respects_breakers: See :class:`~enforcement.store.cluster.connection.ClusterPipe`.
        """

    @abstractmethod
    def async_pipe(self, budget: float, *, respects_breakers: bool = True) -> AwaitedPipe:
        """Return a new pipe with the connections that tasks of event loops use. Arguments are those of :meth:`pipe`."""

    @abstractmethod
    def client(self, timeout: float) -> StoreClient:
        """Return a new redis-py client, which shares with this object what is known of the servers."""

    @abstractmethod
    def groups(self, things: Sequence[T], tag_of: Callable[[T], str]) -> Iterable[list[T]]:
        """Return things in groups, each of which one call reaches. *tag_of* returns the hash tag of a thing's keys."""

    @abstractmethod
    def is_away(self, key: str) -> bool:
        """Return whether the server with this counter is unavailable."""

    def owner_of(self, key: str) -> str:
        """Return the name of the server that has a counter, as far as it is known, or "" if there is only one."""
        return ""

    @abstractmethod
    def is_open(self) -> bool:
        """Return whether any server of the store is unavailable."""

    @abstractmethod
    def outages(self) -> tuple[int, int]:
        """Return how many servers are unavailable now, and how often one became unavailable."""

    @abstractmethod
    def is_ready(self, key: str) -> bool:
        """Return whether replaying charges to this counter is worth a try."""

    @abstractmethod
    def failed(self, exc: StoreError) -> None:
        """Count a failed call for ``breaker``, unless the cause was the call itself."""

    @abstractmethod
    def examine(self, attempt: Callable[[], StoreError | None]) -> StoreError | None:
        """
        Try a decision by *attempt*, count it for ``breaker``, and return what *attempt* returned: the error, or None.

        A store with a monitor leaves that to it, and returns None.
        """

    @abstractmethod
    def recover(self, act: Callable[[], bool]) -> bool:
        """
        Run *act*, which replays charges, and return whether it succeeded. A store with a monitor wakes that and returns
        True.
        """

    def load_library(self, key: str) -> None:  # noqa: B027 - of a store that is one server, the heartbeat does it
        """Do nothing, except in a subclass, which loads the function library into the node of a counter."""

    def look(self) -> None:  # noqa: B027 - see SentinelStore
        """Do nothing, except in a subclass, which asks whether there is a new primary."""

    def forget(self) -> None:  # noqa: B027 - see SentinelStore
        """Do nothing, except in a subclass, which drops the cached primary, so that the next connection asks for it."""

    def start(self) -> None:  # noqa: B027 - see ClusterStore
        """Do nothing, except in a subclass, which allows its monitor of a cluster's nodes to run."""

    @abstractmethod
    def stop(self, timeout: float, *, agent_ended: bool) -> bool:
        """
        End the monitor, and return whether the thread that replays charges has ended.

        Args:
            timeout: Wait so many seconds at most.
            agent_ended: Whether the background thread has ended; it replays charges where there is no monitor.
        """

    def wake(self) -> None:  # noqa: B027 - see ClusterStore
        """Do nothing, except in a subclass, which has its monitor check the store soon. Any thread may call this."""

    def after_fork(self) -> None:
        """Replace the locks and threads of the parent in a child process."""
        self.breaker.after_fork()


class SingleStore(StoreConnector):
    """A store that is one server."""

    def __init__(self, topology: Topology, budget: float) -> None:
        super().__init__(budget)
        self._topology = topology
        self.duty_failures = DutyFailures()

    def pipe(self, budget: float, *, respects_breakers: bool = True) -> Pipe:
        """Return a new pipe to the server for threads."""
        return SyncPipe(lambda: self._topology.address, budget)

    def async_pipe(self, budget: float, *, respects_breakers: bool = True) -> AwaitedPipe:
        """Return a new pipe to the server for the tasks of event loops."""
        return AsyncPipe(lambda: self._topology.address, budget)

    def client(self, timeout: float) -> StoreClient:
        """Return a new redis-py client of the server."""
        return client_of(self._topology, timeout)

    def groups(self, things: Sequence[T], tag_of: Callable[[T], str]) -> Iterable[list[T]]:
        """Return a list with one group, a copy of all things."""
        return [list(things)]

    def is_away(self, key: str) -> bool:
        """Return whether the store is unavailable."""
        return self.breaker.open

    def is_open(self) -> bool:
        """Return whether the store is unavailable."""
        return self.breaker.open

    def outages(self) -> tuple[int, int]:
        """Return 1 if the server is unavailable now, or 0, and how often it became unavailable."""
        return int(self.breaker.open), self.breaker.openings

    def is_ready(self, key: str) -> bool:
        """Return True, because the store may be back before its breaker closes."""
        return True

    def failed(self, exc: StoreError) -> None:
        """Count a failed call for the breaker if the server may be unavailable."""
        if exc.away:
            self.breaker.failed(exc.cause, exc.crowd)

    def examine(self, attempt: Callable[[], StoreError | None]) -> StoreError | None:
        """Try a decision, count it for the breaker, and return the error, or None if the server decided."""
        exc = attempt()
        if exc is not None:
            if exc.cause != FULL:
                self.failed(exc)
        elif self.breaker.failures:
            self.breaker.succeeded()
        return exc

    def recover(self, act: Callable[[], bool]) -> bool:
        """Run *act*, which replays charges, and return its result."""
        return act()

    def stop(self, timeout: float, *, agent_ended: bool) -> bool:
        """Return *agent_ended*, because there is no monitor to end."""
        return agent_ended


class SentinelStore(SingleStore):
    """
    A store that is the primary which sentinels name.

    Attributes:
        sentinels: Caches the address of the primary.
    """

    def __init__(self, topology: Topology, budget: float) -> None:
        super().__init__(topology, budget)
        self.sentinels = Sentinels(topology, budget)
        self.sentinels.on_change = lambda: self.on_change()

    def pipe(self, budget: float, *, respects_breakers: bool = True) -> Pipe:
        """Return a new pipe to the primary for threads."""
        return SyncPipe(self.sentinels.address, budget, self.sentinels.lost)

    def async_pipe(self, budget: float, *, respects_breakers: bool = True) -> AwaitedPipe:
        """Return a new pipe to the primary for the tasks of event loops."""
        return AsyncPipe(self.sentinels.address, budget, self.sentinels.lost, self.sentinels.known)

    def client(self, timeout: float) -> StoreClient:
        """Return a new redis-py client of the primary."""
        return primary_client(self.sentinels, self._topology, timeout)

    def look(self) -> None:
        """Ask the sentinels for the primary, and reconnect if it is a new one."""
        self.sentinels.look()

    def forget(self) -> None:
        """Drop the cached primary, so that the next connection asks the sentinels again."""
        self.sentinels.forget()

    def after_fork(self) -> None:
        """Replace the locks of the parent in a child process."""
        super().after_fork()
        self.sentinels.after_fork()


class ClusterStore(StoreConnector):
    """
    A store that is a cluster. Each node may be unavailable alone, and a monitor detects when it is back.

    Attributes:
        slot_map: The owner of each slot.
    """

    one_slot_per_call = True

    def __init__(self, topology: Topology, budget: float) -> None:
        super().__init__(budget)
        self._topology = topology
        self._budget = budget
        self.slot_map = self.gate = SlotMap(topology, budget)
        self.duty_failures = NodeDutyFailures(self.slot_map)
        self._make_monitor()

    def _make_monitor(self) -> None:
        self._monitor = ClusterMonitor(self.slot_map, self._budget, self._replay_to)
        self.slot_map.on_trouble = self._monitor.wake

    def pipe(self, budget: float, *, respects_breakers: bool = True) -> Pipe:
        """Return a new pipe, by which threads send each command to the node of its key."""
        return ClusterPipe(self.slot_map, budget, respects_breakers=respects_breakers)

    def async_pipe(self, budget: float, *, respects_breakers: bool = True) -> AwaitedPipe:
        """Return a new pipe to all nodes for the tasks of event loops."""
        return AsyncClusterPipe(self.slot_map, budget, respects_breakers=respects_breakers)

    def client(self, timeout: float) -> StoreClient:
        """Return a new redis-py client of all nodes."""
        return ClusterClient(self.slot_map, node_client(self._topology, timeout), respects_breakers=True)

    def groups(self, things: Sequence[T], tag_of: Callable[[T], str]) -> Iterable[list[T]]:
        """Return things in groups of one hash tag each."""
        return together(things, tag_of)

    def is_away(self, key: str) -> bool:
        """Return whether the node with this counter is unavailable or unknown."""
        return self.slot_map.is_away(key)

    def owner_of(self, key: str) -> str:
        """Return the name of the node with this counter, or "" if it is unknown."""
        node = self.slot_map.owners[slot_of(key.encode())]
        return node.name if node is not None else ""

    def is_open(self) -> bool:
        """Return whether a node is unavailable."""
        return bool(self.slot_map.away())

    def outages(self) -> tuple[int, int]:
        """Return how many nodes are unavailable now, and how often one became unavailable."""
        return len(self.slot_map.away()), self.slot_map.openings

    def is_ready(self, key: str) -> bool:
        """Return whether the node with this counter is available."""
        return not self.slot_map.is_away(key)

    def failed(self, exc: StoreError) -> None:
        """Do nothing, as the failure was counted for its node."""

    def examine(self, attempt: Callable[[], StoreError | None]) -> StoreError | None:
        """Wake the monitor, which tries a decision on each node that failed a call, and return None."""
        self._monitor.wake()
        return None

    def recover(self, act: Callable[[], bool]) -> bool:
        """Wake the monitor, which replays charges to each node as soon as it can, and return True."""
        self._monitor.wake()
        return True

    def load_library(self, key: str) -> None:
        """Try to load the function library into the node of a counter, which may have come back without it."""
        with contextlib.suppress(StoreError):  # another account may be allowed to
            node = self.slot_map.owner(slot_of(key.encode()))
            ask_once(node.address, pack(load_command()), LOAD_SECONDS, node.patience)

    def start(self) -> None:
        """Allow the monitor to run, which checks the nodes of a cluster in the background."""
        self._monitor.start()

    def stop(self, timeout: float, *, agent_ended: bool) -> bool:
        """End the monitor, and return whether it has ended."""
        return self._monitor.stop(timeout)

    def wake(self) -> None:
        """Have the monitor check the cluster soon. Any thread may call this."""
        self._monitor.wake()

    def after_fork(self) -> None:
        """Replace the locks and the monitor of the parent in a child process."""
        super().after_fork()
        self.slot_map.after_fork()
        self._make_monitor()

    def _replay_to(self, back: Sequence[Node]) -> bool:
        """Replay charges to *back* and nodes that answer, use *back* again if that works, and return whether it did."""

        def is_ready(key: str) -> bool:
            return not self.slot_map.is_away(key, back)

        if not self.replay(is_ready):
            return False
        if back:
            self.on_return(is_ready)
        return True


def connector_of(url: str, budget: float, credentials: Credentials | None = None) -> StoreConnector:
    """
    Return a new connector of the store of a URL, without any I/O.

    Args:
        url: See :mod:`enforcement.store.topology`.
        budget: Seconds for finding a server while a decision waits for it.
        credentials: See :meth:`Topology.parse <enforcement.store.topology.Topology.parse>`.
    Raises:
        ValueError: The URL cannot be used.
        RuntimeError: Another library than gevent has replaced Python's sockets.
    """
    check_sockets()
    topology = Topology.parse(url, credentials)
    if topology.kind == "cluster":
        return ClusterStore(topology, budget)
    if topology.kind == "sentinel":
        return SentinelStore(topology, budget)
    return SingleStore(topology, budget)
