"""
Asking the sentinels where the primary is: once for all connections of a process, and again when one failed.

They are asked for the address, as their protocol has it, and not for what they know of the servers, as redis-py does: a
sentinel that leads a failover goes on listing the old primary until all is done, and as healthy if it came back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from enforcement.plan.commands import MAX_PORT, StoreError, pack
from enforcement.store.address import Address
from enforcement.store.connection import ask_once
from enforcement.store.topology import Topology

PAUSE_SECONDS: Final = 0.2
"""So long nobody whom a decision waits for asks again what no sentinel knew."""


class Sentinels:
    """
    Where the primary is, as the sentinels say.

    Attributes:
        asked: How often they were asked.
        on_change: Called when a look found another primary than before; any thread may call.
    """

    def __init__(self, topology: Topology, budget: float) -> None:
        self.asked = 0
        self.on_change: Callable[[], None] = lambda: None
        self._topology = topology
        self._budget = budget
        self._places = list(topology.places)
        self._question = pack(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", topology.service))
        self._known: Address | None = None
        self._not_before = 0.0
        self._lock = threading.Lock()

    def known(self) -> Address | None:
        """Return the primary's address without asking anybody."""
        return self._known

    def address(self) -> Address:
        """
        Return the primary's address; who does not know it asks, and those who want it too wait for the answer.

        Raises:
            StoreError: No sentinel knows it, or knew it a moment ago.
        """
        known = self._known
        if known is not None:
            return known
        with self._lock:
            if self._known is None:
                if monotonic() < self._not_before:  # those who waited here need not find out one after the other
                    raise StoreError("sentinel", "no sentinel knew it a moment ago", executed=False)
                self._not_before = monotonic() + PAUSE_SECONDS
                self._known = self._ask()
                self._not_before = 0.0
            return self._known

    def lost(self, address: Address) -> None:
        """Forget an address at which the primary was not found; it may be known by now that it is elsewhere."""
        if self._known == address:
            self._known = None

    def forget(self) -> None:
        """Forget the address: who wants it next asks."""
        self._known = None

    def find(self) -> Address:
        """
        Ask where the primary is, whatever is known; what leads elsewhere is known to be wrong then.

        Raises:
            StoreError: No sentinel knows it.
        """
        with self._lock:
            before, found = self._known, self._ask()
            self._known = found
        if before is not None and found != before:
            self.on_change()
        return found

    def look(self) -> None:
        """Ask whether the primary is still where it was: a process that sends nothing would not meet the difference."""
        with contextlib.suppress(StoreError):  # what is known holds until somebody knows better
            self.find()

    def after_fork(self) -> None:
        """Begin anew in a child process, whose parent may have held the lock."""
        self._lock = threading.Lock()

    def _ask(self) -> Address:
        self.asked += 1
        deadline, trouble = monotonic() + self._budget, StoreError("sentinel", "no sentinel answers", executed=False)
        for place in list(self._places):
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                # None of them may use up the time of all: those that hang are no better than those that are down.
                found = ask_once(self._topology.sentinel_address(*place), self._question, max(0.005, left / 2))
            except StoreError as exc:
                trouble = StoreError("sentinel", str(exc), executed=False)
                continue
            finally:
                self._places.remove(place)
                self._places.append(place)
            if _is_place(found):
                self._places.remove(place)
                self._places.insert(0, place)  # who answers is asked first the next time
                return self._topology.address_of(found[0].decode(), int(found[1]))
            trouble = StoreError("sentinel", f"{self._topology.service!r} is unknown", executed=False)
        raise trouble


def _is_place(reply: object) -> bool:
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and all(isinstance(part, bytes) for part in reply)
        and reply[1].isdigit()
        and 1 <= int(reply[1][:6]) <= MAX_PORT
    )
