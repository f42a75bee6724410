"""Where the store is, and what speaks to it there: one server, the primary that sentinels name, or a cluster."""

from __future__ import annotations

from redis import Redis

from enforcement.store.aio_connection import AsyncPipe
from enforcement.store.client import connect, node_client, primary_client
from enforcement.store.cluster import AsyncClusterPipe, ClusterClient, ClusterPipe
from enforcement.store.connection import SyncPipe
from enforcement.store.sentinel import Sentinels
from enforcement.store.slot_map import SlotMap
from enforcement.store.topology import Topology

Pipe = SyncPipe | ClusterPipe


class StoreConnector:
    """
    A store as a limiter sees it.

    Args:
        url: See :mod:`enforcement.store.topology`.
        budget: Seconds for finding the store where a decision waits for it.

    Attributes:
        slot_map: Of a cluster; None: all counters are together, and one call can reach them.
        sentinels: Where there are some.
    """

    def __init__(self, url: str, budget: float) -> None:
        self.topology = Topology.parse(url)
        kind = self.topology.kind
        self.slot_map = SlotMap(self.topology, budget) if kind == "cluster" else None
        self.sentinels = Sentinels(self.topology, budget) if kind == "sentinel" else None

    def pipe(self, budget: float, *, heeds: bool = True) -> Pipe:
        """Return what threads call; *heeds* as of :class:`~enforcement.store.cluster.ClusterPipe`."""
        if self.slot_map is not None:
            return ClusterPipe(self.slot_map, budget, heeds=heeds)
        if self.sentinels is not None:
            return SyncPipe(self.sentinels.address, budget, self.sentinels.lost)
        return SyncPipe(lambda: self.topology.address, budget)

    def async_pipe(self, budget: float) -> AsyncPipe | AsyncClusterPipe:
        """Return what the tasks of an event loop call."""
        if self.slot_map is not None:
            return AsyncClusterPipe(self.slot_map, budget)
        if self.sentinels is not None:
            return AsyncPipe(self.sentinels.address, budget, self.sentinels.lost, self.sentinels.known)
        return AsyncPipe(lambda: self.topology.address, budget)

    def client(self, timeout: float) -> Redis:
        """Return a redis-py client, which shares what is known of the servers."""
        if self.slot_map is not None:
            return ClusterClient(self.slot_map, node_client(self.topology, timeout), heeds=True)
        if self.sentinels is not None:
            return primary_client(self.sentinels, self.topology, timeout)
        return connect(self.topology.url, timeout=timeout)

    def look(self) -> None:
        """Look whether the store is still where it was, where that can change without a connection being lost."""
        if self.sentinels is not None:
            self.sentinels.look()

    def forget(self) -> None:
        """Take nothing for known that may have changed: whoever connects next asks where the store is."""
        if self.sentinels is not None:
            self.sentinels.forget()

    def after_fork(self) -> None:
        """Begin anew in a child process."""
        for part in (self.slot_map, self.sentinels):
            if part is not None:
                part.after_fork()


__all__ = ["Pipe", "StoreConnector"]
