"""
Ask the sentinels for the address of the primary, once for a process and again when a connection failed.

The question is GET-MASTER-ADDR-BY-NAME, as the protocol of sentinels demands. redis-py asks for the list of servers
instead; a sentinel that leads a failover still lists the old primary there, even as healthy, until the end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

from enforcement.store.address import Address
from enforcement.store.connection import Patience, ask_once
from enforcement.store.errors import MAX_PORT, StoreError
from enforcement.store.resp import pack
from enforcement.store.topology import Topology

PAUSE_SECONDS: Final = 0.2
"""How long calls fail at once, without asking again, after no sentinel knew the address."""


class Sentinels:
    """
    The address of the primary, according to the sentinels.

    Attributes:
        queries: How often the sentinels were asked.
        on_change: Called, in any thread, when there is a new primary.
    """

    def __init__(self, topology: Topology, budget: float) -> None:
        self.queries = 0
        self.on_change: Callable[[], None] = lambda: None
        self._topology = topology
        self._budget = budget
        self._hosts = list(topology.hosts)
        self._command = pack(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", topology.service))
        self._known: Address | None = None
        self._not_before = 0.0
        self._patience = Patience()
        self._lock = threading.Lock()

    def known(self) -> Address | None:
        """Return the cached address, or None if there is none."""
        return self._known

    def address(self) -> Address:
        """
        Return the address of the primary, from the cache or else from the sentinels. Other threads wait for the same
        reply.

        Raises:
            StoreError: No sentinel knows it, or none knew it a moment ago.
        """
        known = self._known
        if known is not None:
            return known
        with self._lock:
            if self._known is None:
                if monotonic() < self._not_before:  # threads that waited for the lock do not ask one by one
                    raise StoreError("sentinel", "no sentinel knew it a moment ago", executed=False)
                self._not_before = monotonic() + PAUSE_SECONDS
                self._known = self._ask()
                self._not_before = 0.0
            return self._known

    def lost(self, address: Address) -> None:
        """Drop the cached address if it is *address*, at which the primary was not found."""
        if self._known == address:
            self._known = None

    def forget(self) -> None:
        """Drop the cached address, so that the next connection asks the sentinels again."""
        self._known = None

    def find(self) -> Address:
        """
        Ask the sentinels for the primary's address, keep and return it, and call ``on_change`` if it replaced another.

        Raises:
            StoreError: No sentinel knows it.
        """
        with self._lock:
            before, address = self._known, self._ask()
            self._known = address
        if before is not None and address != before:
            self.on_change()
        return address

    def look(self) -> None:
        """Ask the sentinels for the primary, and keep its address, unless no sentinel answers."""
        with contextlib.suppress(StoreError):  # the cached address stays until a sentinel knows a better one
            self.find()

    def after_fork(self) -> None:
        """Replace the lock in a child process, because a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _ask(self) -> Address:
        self.queries += 1
        deadline, trouble = monotonic() + self._budget, StoreError("sentinel", "no sentinel answers", executed=False)
        for host_port in list(self._hosts):
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                # One sentinel that hangs must not use up the time of all.
                found = ask_once(
                    self._topology.sentinel_address(*host_port), self._command, max(0.005, left / 2), self._patience
                )
            except StoreError as exc:
                trouble = StoreError("sentinel", str(exc), executed=False)
                continue
            finally:
                self._hosts.remove(host_port)
                self._hosts.append(host_port)
            if _is_host_port(found):
                self._hosts.remove(host_port)
                self._hosts.insert(0, host_port)  # one that answers is asked first the next time
                return self._topology.address_of(found[0].decode(), int(found[1]))
            trouble = StoreError("sentinel", f"{self._topology.service!r} is unknown", executed=False)
        raise trouble


def _is_host_port(reply: object) -> bool:
    return (
        isinstance(reply, list)
        and len(reply) == 2
        and all(isinstance(part, bytes) for part in reply)
        and reply[1].isdigit()
        and 1 <= int(reply[1][:6]) <= MAX_PORT
    )
