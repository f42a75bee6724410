"""Measure how long the store takes to reply. Nothing is measured until it is requested."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

BOUNDS_SECONDS: Final = (0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""Upper bounds of the buckets. The last bucket has none."""

Call = Callable[..., Any]
Listener = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Histogram:
    """
    The number of calls by their duration.

    Attributes:
        bounds_seconds: Inclusive upper bounds of all buckets except the last, which has none.
        counts: Calls in each bucket, not cumulative. There is one more than there are bounds.
        total_seconds: Duration of all calls together.
    """

    bounds_seconds: tuple[float, ...]
    counts: tuple[int, ...]
    total_seconds: float


class Timing:
    """Measures the duration of calls, including those that fail. Any thread may call."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._counts = [0] * (len(BOUNDS_SECONDS) + 1)
        self._total = 0.0

    def of_calls(self, call: Call) -> Call:
        """Return a function that calls *call* and records how long that took."""

        def timed(*args: object) -> object:
            began = perf_counter()
            try:
                return call(*args)
            finally:
                self._note(perf_counter() - began)

        return timed

    def of_awaited_calls(self, call: Call) -> Call:
        """Return a coroutine function that awaits *call* and records how long its reply took."""

        async def timed(*args: object) -> object:
            began = perf_counter()
            try:
                return await call(*args)
            finally:
                self._note(perf_counter() - began)

        return timed

    def histogram(self) -> Histogram:
        """Return a histogram of the times that were recorded so far."""
        return Histogram(BOUNDS_SECONDS, tuple(self._counts), self._total)

    def _note(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self._total += seconds
        for listener in self.listeners:
            listener(seconds)
