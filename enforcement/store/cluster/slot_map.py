"""
Find the node that owns a slot of a cluster, and the nodes that are unavailable.

Every node has a circuit breaker of its own, because one dead node says nothing about the others. The table of slots is
read from any node. Each redirection corrects it, and the monitor reads it again whenever it was wrong.
"""

from __future__ import annotations

import logging
import threading
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from enforcement.store.address import Address
from enforcement.store.breaker import Breaker, chance
from enforcement.store.connection import Patience, ask_once
from enforcement.store.errors import MAX_PORT, SLOTS, Redirected, StoreError
from enforcement.store.resp import pack
from enforcement.store.topology import HostPort, Topology

PAUSE_SECONDS: Final = 0.2
"""How long calls fail at once after the table could not be read, without waiting for another try."""

_CLUSTER_SLOTS: Final = pack(("CLUSTER", "SLOTS"))

logger = logging.getLogger("sluicegate.cluster")


def slot_of(text: bytes) -> int:
    """
    Return the slot of a key, or of the first key in an encoded command.

    The slot follows from the first hash tag, the part between braces. Every key of this library has one, and nothing
    before the first key of a command contains a brace.
    """
    start = text.index(b"{") + 1
    return crc_hqx(text[start : text.index(b"}", start)], 0) % SLOTS


class Node:
    """
    One server of a cluster that owns slots.

    Attributes:
        breaker: Open while the node does not answer.
        patience: That of those who ask it something beside the decisions.
    """

    __slots__ = ("__weakref__", "address", "breaker", "host_port", "patience")

    def __init__(
        self,
        host_port: HostPort,
        address: Address,
        budget: float,
        on_open: Callable[[str], None],
        on_doubt: Callable[[], None],
    ) -> None:
        self.host_port = host_port
        self.address = address
        self.patience = Patience()
        self.breaker = Breaker(on_open, f"The store's server {self.name}", budget=budget, on_doubt=on_doubt)

    @property
    def name(self) -> str:
        """The host and port of the node, for messages."""
        return "{}:{}".format(*self.host_port)


class SlotMap:
    """
    The owner of each slot.

    Args:
        budget: Seconds for reading the table while a call waits for it.

    Attributes:
        on_trouble: Called when the table was wrong, or a node became unavailable. Must return quickly.
        nodes: All nodes that own slots.
        owners: The owner of each slot; None: unknown.
        open: Whether a node may be unavailable. :meth:`away` returns which.
        openings: How often a node became unavailable.
        doubted: The nodes that failed a call, and have not been tried since.
    """

    def __init__(self, topology: Topology, budget: float) -> None:
        self.nodes: dict[HostPort, Node] = {}
        self.owners: list[Node | None] = [None] * SLOTS
        self.open = False
        self.openings = 0
        self.doubted: set[HostPort] = set()
        self.on_trouble: Callable[[], None] = lambda: None
        self._topology = topology
        self._budget = budget
        self._not_before = 0.0
        self._patience = Patience()
        self._lock = threading.Lock()

    def owner(self, slot: int, deadline: float | None = None) -> Node:
        """
        Return the owner of a slot, after reading the table if the owner is unknown.

        Args:
            deadline: When the call that needs it must be over, in monotonic seconds. None: the whole budget is left.
        Raises:
            StoreError: The owner is still unknown.
        """
        node = self.owners[slot]
        if node is None:
            with self._lock:
                if self.owners[slot] is None and monotonic() >= self._not_before:
                    self._not_before = monotonic() + PAUSE_SECONDS
                    self.refresh(None if deadline is None else max(0.001, deadline - monotonic()))
            node = self.owners[slot]
        if node is None:
            self.on_trouble()
            raise StoreError("cluster", f"no node is known to serve slot {slot}", executed=False)
        return node

    def follow(self, redirection: Redirected, sender: Node) -> Node:
        """Return the node that a redirection names, and correct the table unless only this call has to go there."""
        host, port = redirection.target
        node = self._node((host or sender.host_port[0], port))
        if not redirection.asking:
            self.owners[redirection.slot] = node
            self.on_trouble()  # slots seldom move alone, so the table is read again
        return node

    def failed(self, node: Node, exc: StoreError) -> None:
        """Count a failed call for the node's breaker, unless the cause was the call itself."""
        if exc.away:
            node.breaker.failed(exc.cause, exc.crowd)

    def away(self) -> list[Node]:
        """Return the nodes that own slots and do not answer."""
        return [node for node in list(self.nodes.values()) if node.breaker.open]

    def is_away(self, key: str, but: Sequence[Node] = ()) -> bool:
        """Return whether the node with this counter is unknown or does not answer, except for the nodes in *but*."""
        node = self.owners[slot_of(key.encode())]
        return node is None or (node.breaker.open and node not in but)

    @property
    def complete(self) -> bool:
        """Whether the owner of every slot is known."""
        return None not in self.owners

    def refresh(self, budget: float | None = None) -> bool:
        """Replace the table of slots by that of the first node that answers, and return whether one did."""
        deadline = monotonic() + (budget or self._budget)
        for host_port in self._candidates():
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                rows = ask_once(
                    self._topology.address_of(*host_port), _CLUSTER_SLOTS, max(0.005, left / 2), self._patience
                )
                self._read(rows, host_port[0])
            except StoreError as exc:
                logger.debug("No table of slots from %s:%d: %s.", *host_port, exc)
            except (TypeError, ValueError, IndexError, AttributeError) as exc:
                logger.warning("The table of slots from %s:%d cannot be read: %s.", *host_port, exc)
            else:
                return True
        return False

    def after_fork(self) -> None:
        """Replace the locks in a child process, because a thread of the parent may have held them."""
        self._lock = threading.Lock()
        for node in self.nodes.values():
            node.breaker.after_fork()

    def _opened(self, cause: str) -> None:
        self.openings += 1
        self.open = True
        self.on_trouble()

    def _candidates(self) -> list[HostPort]:
        """Return the nodes that answer, then the hosts of the URL, then all other nodes, to ask them for the table."""
        nodes = list(self.nodes.values())
        chance.shuffle(nodes)
        healthy = [node.host_port for node in nodes if not node.breaker.open]
        return list(dict.fromkeys([*healthy, *self._topology.hosts, *(node.host_port for node in nodes)]))

    def _read(self, rows: Sequence[Any], asked_host: str) -> None:
        """Replace the table by the reply to CLUSTER SLOTS. An empty host in it stands for the host that was asked."""
        owners: list[Node | None] = [None] * SLOTS
        nodes: dict[HostPort, Node] = {}
        for first, last, primary, *_ in rows:
            host = (primary[0] or b"").decode()
            host_port = (asked_host if host in ("", "?") else host, int(primary[1]))
            node = nodes[host_port] = nodes.get(host_port) or self.nodes.get(host_port) or self._make(host_port)
            owners[first : last + 1] = [node] * (last + 1 - first)
        if not nodes or len(owners) != SLOTS or not all(1 <= port <= MAX_PORT for _, port in nodes):
            raise ValueError("it names no node, or a slot or port that cannot exist")
        self.owners, self.nodes = owners, nodes

    def _node(self, host_port: HostPort) -> Node:
        node = self.nodes.get(host_port)
        if node is None:
            node = self._make(host_port)
            self.nodes = {**self.nodes, host_port: node}
        return node

    def _make(self, host_port: HostPort) -> Node:
        address = self._topology.address_of(*host_port)
        return Node(host_port, address, self._budget, self._opened, lambda: self.doubt(host_port))

    def doubt(self, host_port: HostPort) -> None:
        """Have the monitor try whether a node still decides. Any thread may call this."""
        self.doubted.add(host_port)
        self.on_trouble()
