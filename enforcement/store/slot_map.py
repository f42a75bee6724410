"""
Which node of a cluster owns which slot, and how each node is doing.

Every node has a breaker of its own: one that is dead says nothing of the others. The table is read from any node,
mended by each redirection, and read anew in the background whenever it was found wrong.
"""

from __future__ import annotations

import logging
import threading
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

from enforcement.plan.commands import DECIDE, MAX_PORT, SLOTS, LibraryMissing, Redirected, StoreError, pack
from enforcement.store.address import Address
from enforcement.store.breaker import Breaker, chance, jittered
from enforcement.store.connection import ask_once
from enforcement.store.topology import HostPort, Topology

MAX_REDIRECTS: Final = 2
"""A slot that has moved is found with one, one that is moving with another."""
PAUSE_SECONDS: Final = 0.2
"""So long nobody waits for a table that could not be read a moment ago."""
FIRST_ROUND_SECONDS: Final = 0.05
LONGEST_ROUND_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 0.5

_CLUSTER_SLOTS: Final = pack(("CLUSTER", "SLOTS"))
_CLUSTER_INFO: Final = pack(("CLUSTER", "INFO"))
# A decision over no limit: refused by a server that would refuse any, and answered by each node alike.
_TRIAL: Final = pack(("FCALL", DECIDE, 0, "", "1", ""))

logger = logging.getLogger("sluicegate.cluster")


def slot_of(text: bytes) -> int:
    """
    Return the slot of a key, or of a command whose first key it decides: that of the first hash tag in it.

    Every key of ours has a tag, and nothing that stands before the first key of a command contains a brace.
    """
    start = text.index(b"{") + 1
    return crc_hqx(text[start : text.index(b"}", start)], 0) % SLOTS


class Node:
    """
    One server of a cluster that owns slots.

    Attributes:
        breaker: Open while it does not answer.
    """

    __slots__ = ("__weakref__", "address", "breaker", "place")

    def __init__(self, place: HostPort, address: Address, on_open: Callable[[str], None]) -> None:
        self.place = place
        self.address = address
        self.breaker = Breaker(on_open, "The store's server {}:{}".format(*place))


class SlotMap:
    """
    The owner of each slot.

    Args:
        budget: Seconds for reading the table where somebody waits for it.

    Attributes:
        on_trouble: Called when the table was found wrong, or a node away. Must return quickly.
        nodes: All that own slots.
        read: How often the table was read.
        openings: How often a node was found away.
    """

    def __init__(self, topology: Topology, budget: float) -> None:
        self.nodes: dict[HostPort, Node] = {}
        self.read = 0
        self.openings = 0
        self.on_trouble: Callable[[], None] = lambda: None
        self._topology = topology
        self._budget = budget
        self._owners: list[Node | None] = [None] * SLOTS
        self._not_before = 0.0
        self._lock = threading.Lock()

    def known_owner(self, slot: int) -> Node | None:
        """Return the owner of a slot, if it is known."""
        return self._owners[slot]

    def owner(self, slot: int) -> Node:
        """
        Return the owner of a slot; the first who asks reads the table.

        Raises:
            StoreError: Nobody owns it, as far as can be found out now.
        """
        node = self._owners[slot]
        if node is None:
            with self._lock:
                if self._owners[slot] is None and monotonic() >= self._not_before:
                    self._not_before = monotonic() + PAUSE_SECONDS
                    self.refresh()
            node = self._owners[slot]
        if node is None:
            self.on_trouble()
            raise StoreError("cluster", f"no node is known to serve slot {slot}", executed=False)
        return node

    def follow(self, sent: Redirected, asked: Node) -> Node:
        """Return the node that a redirection names, and mend the table unless only this call goes there."""
        node = self._node((sent.place[0] or asked.place[0], sent.place[1]))
        if not sent.asks:
            self._owners[sent.slot] = node
            self.on_trouble()  # one slot that moved is seldom the only one
        return node

    def failed(self, node: Node, exc: StoreError) -> None:
        """Count a failed call; one that only concerns itself does not open the node's breaker."""
        if exc.away:
            node.breaker.failed(exc.cause)

    def _opened(self, cause: str) -> None:
        self.openings += 1
        self.on_trouble()

    def away(self) -> list[Node]:
        """Return the nodes that own slots and do not answer."""
        return [node for node in list(self.nodes.values()) if node.breaker.open]

    def is_away(self, key: str, but: Sequence[Node] = ()) -> bool:
        """Tell whether the counter of this key is on a node that does not answer, and is none of these."""
        node = self._owners[slot_of(key.encode())]
        return node is None or (node.breaker.open and node not in but)

    @property
    def complete(self) -> bool:
        """Whether every slot has an owner, as far as is known."""
        return None not in self._owners

    def refresh(self, budget: float | None = None) -> bool:
        """Read the table from the first node that answers; tell whether one did."""
        deadline = monotonic() + (budget or self._budget)
        for place in self._candidates():
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                rows = ask_once(self._topology.address_of(*place), _CLUSTER_SLOTS, max(0.005, left / 2))
                self._take(rows, place[0])
            except StoreError as exc:
                logger.debug("no table of slots from %s:%d: %s", *place, exc)
            except (TypeError, ValueError, IndexError, AttributeError) as exc:
                logger.warning("the table of slots from %s:%d cannot be read: %s", *place, exc)
            else:
                return True
        return False

    def probe(self, node: Node) -> bool:
        """Ask a node whether it serves its slots, and would decide in time."""
        try:
            reply = ask_once(node.address, _CLUSTER_INFO, PROBE_SECONDS)
        except StoreError:
            return False
        return isinstance(reply, bytes) and b"cluster_state:ok" in reply and self._decides(node)

    def _decides(self, node: Node) -> bool:
        try:
            ask_once(node.address, _TRIAL, self._budget)
        except LibraryMissing:
            return True  # the next decision gives it the library
        except StoreError as exc:
            return not exc.away
        return True

    def after_fork(self) -> None:
        """Begin anew in a child process, whose parent may have held the locks."""
        self._lock = threading.Lock()
        for node in self.nodes.values():
            node.breaker.after_fork()

    def _candidates(self) -> list[HostPort]:
        """Return whom to ask, those first who are well and belong to the cluster still."""
        nodes = list(self.nodes.values())
        chance.shuffle(nodes)
        nodes.sort(key=lambda node: node.breaker.open)
        places = [node.place for node in nodes if not node.breaker.open]
        places += self._topology.places
        return list(dict.fromkeys([*places, *(node.place for node in nodes)]))

    def _take(self, rows: Sequence[Any], asked: str) -> None:
        owners: list[Node | None] = [None] * SLOTS
        nodes: dict[HostPort, Node] = {}
        for first, last, primary, *_ in rows:
            host = (primary[0] or b"").decode()
            place = (asked if host in ("", "?") else host, int(primary[1]))
            node = nodes[place] = nodes.get(place) or self.nodes.get(place) or self._made(place)
            owners[first : last + 1] = [node] * (last + 1 - first)
        if not nodes or len(owners) != SLOTS or not all(1 <= port <= MAX_PORT for _, port in nodes):
            raise ValueError("it names no node, or slots or ports that do not exist")
        self._owners, self.nodes = owners, nodes
        self.read += 1

    def _node(self, place: HostPort) -> Node:
        node = self.nodes.get(place)
        if node is None:
            node = self._made(place)
            self.nodes = {**self.nodes, place: node}
        return node

    def _made(self, place: HostPort) -> Node:
        return Node(place, self._topology.address_of(*place), self._opened)


class ClusterMonitor:
    """
    The thread that mends what is wrong with a cluster: reads the table, and finds nodes again. It runs while needed.

    Args:
        pay: Called after each look at the cluster with the nodes that answer again, before decisions use them: pays
            what is owed to them and to all others that answer. False: one of them does not answer well enough.
    """

    def __init__(self, slot_map: SlotMap, pay: Callable[[Sequence[Node]], bool]) -> None:
        self._slot_map = slot_map
        self._pay = pay
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Look at the cluster soon. Any thread may call, as often as it likes."""
        if self._wanted.is_set():
            return
        with self._lock:
            self._wanted.set()
            if (self._thread is None or not self._thread.is_alive()) and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="sluicegate-cluster", daemon=True)
                self._thread.start()

    def start(self) -> None:
        """Allow the thread, after a ``stop()``."""
        self._stopping.clear()

    def stop(self, timeout: float = 2.0) -> bool:
        """End the thread, if it runs; tell whether it has ended within so many seconds."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        self._wanted.clear()
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        rounds = 0
        while not self._done():
            longest = min(LONGEST_ROUND_SECONDS, FIRST_ROUND_SECONDS * 2.0 ** min(rounds, 10))
            rounds += 1
            self._stopping.wait(jittered(longest))
            self._wanted.clear()
            self._look()

    def _look(self) -> None:
        slot_map = self._slot_map
        slot_map.refresh(PROBE_SECONDS)
        back = [node for node in slot_map.away() if not self._stopping.is_set() and slot_map.probe(node)]
        if not self._stopping.is_set() and self._pay(back):
            for node in back:
                node.breaker.close()

    def _done(self) -> bool:
        with self._lock:
            if self._stopping.is_set() or not (
                self._wanted.is_set() or self._slot_map.away() or not self._slot_map.complete
            ):
                self._thread = None
                return True
            return False


__all__ = ["MAX_REDIRECTS", "SLOTS", "ClusterMonitor", "Node", "SlotMap", "slot_of"]
