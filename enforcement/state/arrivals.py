"""
Wait for documents that the store has and this process has not read yet.

The background thread reads one publication after the other. A token that was published after its policy may be met,
and be looked up, before this process has read the policy.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from time import monotonic
from typing import NamedTuple

from enforcement.model.documents import StateName


class Arrivals:
    """
    The states of the documents that look-ups wait for. Any thread may use it.

    All that wait for one state wait for one future. If one of them has waited in vain, nobody waits for that state any
    more, until the documents change: whatever hinders the background thread may last.
    """

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what threads of the parent wait for, in a child process."""
        self._lock = threading.Lock()
        self._awaited: dict[StateName, Future[bool]] = {}
        self._in_vain: StateName | None = None

    def of(self, state: StateName, until: float) -> Arrival | None:
        """Return the arrival of a state that is not here yet, or None if somebody has waited for it in vain."""
        with self._lock:
            if self._in_vain is not None and state <= self._in_vain:
                return None
            return Arrival(self, state, self._awaited.setdefault(state, Future()), until)

    def reached(self, present: StateName) -> None:
        """End the waiting for all states up to the *present* one. The background thread calls this."""
        if not self._awaited and self._in_vain is None:
            return
        with self._lock:
            self._in_vain = None
            here = [self._awaited.pop(state) for state in list(self._awaited) if state <= present]
        for future in here:
            future.set_result(True)

    def give_up(self, state: StateName) -> None:
        """End the waiting for a state that did not come in time."""
        with self._lock:
            self._in_vain = state if self._in_vain is None else max(state, self._in_vain)
            future = self._awaited.pop(state, None)
        if future is not None:
            future.set_result(False)


class Arrival(NamedTuple):
    """
    A state that is waited for.

    Attributes:
        state: Its name.
        until: When the waiting ends, monotonic seconds.
    """

    arrivals: Arrivals
    state: StateName
    future: Future[bool]
    until: float

    def wait(self) -> bool:
        """Wait in a thread until the state is here, and return False if it does not come in time."""
        try:
            return self.future.result(max(0.0, self.until - monotonic()))
        except FutureTimeoutError:
            self.arrivals.give_up(self.state)
            return False

    async def waited(self) -> bool:
        """Do what :meth:`wait` does, in an event loop."""
        # Not wait_for(), which would cancel the future that others wait for.
        await asyncio.wait([asyncio.wrap_future(self.future)], timeout=max(0.0, self.until - monotonic()))
        if self.future.done():
            return self.future.result()
        self.arrivals.give_up(self.state)
        return False
