"""How long something took by itself, on a machine that has more to do."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self


class Stalls:
    """Notes when this machine did not run this process: then a thread that only sleeps wakes up late, too."""

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._began = self._ended = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = time.monotonic()
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.005):
            now = time.monotonic()
            if now - last > 0.03:  # shorter ones are those of threads that take turns
                self._found.append((last + 0.005, now))
            last = now

    def without(self, began: float, ended: float) -> float:
        """Return how long something took, without what the machine took. Called at the end."""
        return ended - began - sum(max(0.0, min(end, ended) - max(start, began)) for start, end in self._found)

    @property
    def seconds(self) -> float:
        """How long the whole block took, without what the machine took."""
        return self.without(self._began, self._ended)


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """Return what something returns, and how long it took, without what the machine took."""
    with Stalls() as stalls:
        result = act()
    return result, stalls.seconds
