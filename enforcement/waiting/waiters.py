"""How the callers sleep that wait for permits: threads, and tasks of event loops."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Sequence

from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs
from enforcement.waiting.queues import Waiter


class WaitingThread(Waiter):
    """A thread that waits."""

    def __init__(self, bounds: Sequence[BoundLimit], costs: Costs, began: float, until: float) -> None:
        super().__init__(bounds, costs, began, until)
        # An Event has a lock of its own, for which the garbage collector would wait if it closes a coroutine meanwhile.
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self, seconds: float) -> None:
        """Sleep so long, or until it is woken."""
        self._asleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """End its sleep, or the next one if it does not sleep."""
        with contextlib.suppress(RuntimeError):  # it has been woken before
            self._asleep.release()


class WaitingTask(Waiter):
    """
    A task that waits, in the event loop that runs.

    Args:
        pipe: By what it asks the store: the commands of one event loop in their order. None: by more than one command.
    """

    def __init__(
        self, bounds: Sequence[BoundLimit], costs: Costs, began: float, until: float, pipe: object = None
    ) -> None:
        super().__init__(bounds, costs, began, until)
        self.loop = self._loop = asyncio.get_running_loop()
        self.lane = None if pipe is None else (pipe, self._loop)
        self._woken = False
        # Weak, so that a queue does not keep a task alive whose event loop was closed. It leaves when it is collected.
        self._sleeping: weakref.ref[asyncio.Future[None]] | None = None

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, or until it is woken."""
        future = self._loop.create_future()
        self._sleeping = weakref.ref(future)
        timer = self._loop.call_later(0 if self._woken else seconds, _end, future)
        try:
            await future
        finally:
            timer.cancel()
            self._woken, self._sleeping = False, None

    def wake(self) -> None:
        """End its sleep, or the next one if it does not sleep."""
        if self._woken:
            return
        self._woken = True
        future = None if self._sleeping is None else self._sleeping()
        if future is None:
            return
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                _end(future)
                return
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            self._loop.call_soon_threadsafe(_end, future)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
