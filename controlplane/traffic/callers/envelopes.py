"""
The least and the most requests that limits may have admitted, when only the requests of each bin of time are known.

All callers are replayed at once, one bin after the other, as columns of numpy. The optimistic pass lets the requests of
a bin come when the counters have most room, the pessimistic one when they have least. The exact arithmetic is that of
`enforcement.model.algorithms`; `controlplane.releases.preview.replay` asks it where the two passes differ.

What a pass has admitted since its beginning is a bound at each of its bins, also of several limits together: how many
requests a limit lets pass by some time grows with what was admitted before, and never shrinks. So the truth, which lies
between the two passes at one bin, lies between them at the next one. What one bin admits is no such bound. There the
truth may have more room than the optimistic pass, because it has admitted less until then.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from enforcement.model.limits import Limit

Numbers = np.ndarray


class Counters(Protocol):
    """The counters of all callers under one limit."""

    def room(self, at: int) -> Numbers:
        """Return how many requests may pass in the bin that begins *at* so many seconds. It may be below 0."""

    def add(self, charged: Numbers) -> None:
        """Charge what passed in this bin. A pessimistic counter also takes more, such as all that was sent."""


class FixedCounters:
    """Windows whose starts are known, which are aligned to the epoch or follow a calendar."""

    def __init__(self, quota: Numbers, starts: Numbers, step: int, *, pessimistic: bool) -> None:
        self.quota, self.step, self.pessimistic = quota, step, pessimistic
        # A list, because numpy takes several times as long to look for one number.
        self.starts: list[int] = starts.tolist()
        self.used = np.zeros_like(quota)
        self.window, self.touched = -1, 1
        self.earlier = self.used

    def room(self, at: int) -> Numbers:
        first = bisect_right(self.starts, at)
        last = bisect_right(self.starts, at + self.step - 1, first)
        if first != self.window:
            self.used = np.zeros_like(self.quota)
        self.window, self.touched = last, last - first + 1
        left = self.quota - self.used
        if self.touched == 1 or self.pessimistic:
            return left
        # The permits of earlier windows that a bin which touches several windows may take.
        self.earlier = left + (self.touched - 2) * self.quota
        return self.earlier + self.quota

    def add(self, charged: Numbers) -> None:
        if self.touched == 1:
            self.used = np.minimum(self.used + charged, self.quota)
        elif self.pessimistic:  # all of it may have come in the last window
            self.used = np.minimum(charged, self.quota)
        else:
            self.used = np.maximum(charged - self.earlier, 0)


class SlidingCounters:
    """The sliding window, of which the share of the window before is taken at the start or at the end of a bin."""

    def __init__(self, quota: Numbers, length: int, step: int, *, pessimistic: bool) -> None:
        self.quota, self.length, self.step, self.pessimistic = quota, length, step, pessimistic
        self.current, self.previous = np.zeros_like(quota), np.zeros_like(quota)
        self.window, self.touched = -1, 1

    def room(self, at: int) -> Numbers:
        last = (at + self.step - 1) // self.length
        self.touched = last - at // self.length + 1
        if self.touched > 1 and not self.pessimistic:
            self._roll(last)
            return self.quota * self.touched
        self._roll(at // self.length)
        left = (self.window + 1) * self.length - at
        room = self._room(left if self.pessimistic else max(0, left - self.step))
        # The requests may also come when the next window has begun, and all of this one still counts.
        return np.minimum(room, self.quota - np.maximum(self.current - 1, 0)) if self.touched > 1 else room

    def add(self, charged: Numbers) -> None:
        if self.touched > 1 and not self.pessimistic:  # as many as fit have come before the last window
            charged = np.maximum(charged - self.quota * (self.touched - 1), 0)
        self.current = np.minimum(self.current + charged, self.quota)
        if self.touched > 1 and self.pessimistic:  # it counts for both windows
            self.window, self.previous, self.current = self.window + 1, self.current, np.minimum(charged, self.quota)

    def _room(self, left: int) -> Numbers:
        share = -(-self.previous * left // self.length)
        return self.quota - self.current - np.maximum(share - 1, 0)

    def _roll(self, window: int) -> None:
        if window > self.window:
            self.previous = self.current if window == self.window + 1 else np.zeros_like(self.quota)
            self.current, self.window = np.zeros_like(self.quota), window


class LogCounters:
    """The sliding log, with a window of whole bins that is a little too short or too long."""

    def __init__(self, quota: Numbers, length: int, step: int, *, pessimistic: bool) -> None:
        bins = -(-length // step) + 1 if pessimistic else max(1, length // step)
        # A window shorter than a bin passes several times while a bin lasts.
        self.most = quota * (step // length + 1) if length < step and not pessimistic else quota
        self.kept = np.zeros((bins, len(quota)), np.int64)
        self.used = np.zeros_like(quota)
        self.place = 0

    def room(self, at: int) -> Numbers:
        self.used = self.used - self.kept[self.place]
        return self.most - self.used

    def add(self, charged: Numbers) -> None:
        self.kept[self.place] = charged
        self.used = self.used + charged
        self.place = (self.place + 1) % len(self.kept)


class BucketCounters:
    """The token bucket, of which what flows in during a bin may be used, or may come too late."""

    def __init__(self, quota: Numbers, burst: Numbers, length: int, step: int, *, pessimistic: bool) -> None:
        self.burst, self.pessimistic = burst.astype(float), pessimistic
        self.inflow = quota * (step / length)
        self.level = self.burst.copy()

    @property
    def is_full(self) -> Numbers:
        return self.level >= self.burst

    def room(self, at: int) -> Numbers:
        level = self.level if self.pessimistic else self.level + self.inflow
        return np.floor(level + 1e-9).astype(np.int64)

    def add(self, charged: Numbers) -> None:
        if self.pessimistic:  # the requests come at the end, when nothing flows in any more
            self.level = np.maximum(np.minimum(self.burst, self.level + self.inflow) - charged, 0)
        else:
            self.level = np.minimum(self.burst, self.level - charged + self.inflow)


def admitted(
    demand: Numbers, begins: int, step: int, counters: Sequence[Counters], turn: int
) -> tuple[Numbers, Numbers]:
    """
    Return how many requests of each caller are admitted before the bin *turn*, and in all bins.

    Args:
        demand: Requests by bin and caller.
        begins: Seconds since the epoch at which the first bin begins.
        step: Seconds of a bin.
        counters: A request must find room in all of them.
    """
    total = np.zeros(demand.shape[1], np.int64)
    before = total.copy()
    # A window finds by itself what has passed since. The others must be told of each bin, also of an empty one.
    reads_all = any(isinstance(counter, LogCounters | BucketCounters) for counter in counters)
    for number in range(len(demand)) if reads_all else np.flatnonzero(demand.any(axis=1)).tolist():
        wanted = demand[number].astype(np.int64)  # once, and not in each operation
        passed = np.minimum(wanted, _room(counters, begins + number * step))
        for one in counters:
            one.add(passed)
        total += passed
        if number < turn:
            before += passed
    return before, total


def deniable(demand: Numbers, begins: int, step: int, counters: Sequence[Counters]) -> tuple[Numbers, Numbers | None]:
    """
    Return whether requests may be denied, by bin and caller, and which buckets are surely full before each bin.

    The latter is None if there is no bucket. A window forgets by itself, but a bucket that is used may never fill.

    Args:
        counters: Pessimistic ones, to which all requests are charged. No counter ever has less room.
    """
    found = np.empty(demand.shape, bool)
    buckets = [counter for counter in counters if isinstance(counter, BucketCounters)]
    full = np.ones(demand.shape if buckets else (0, 0), bool)
    for number, counts in enumerate(demand):
        wanted = counts.astype(np.int64)
        for bucket in buckets:
            full[number] &= bucket.is_full
        found[number] = wanted > _room(counters, begins + number * step)
        for one in counters:
            one.add(wanted)
    return found, full if buckets else None


def _room(counters: Sequence[Counters], at: int) -> Numbers:
    """Return how many requests find room in all counters, at least 0."""
    least, *others = [counter.room(at) for counter in counters]
    for room in others:
        least = np.minimum(least, room)
    return np.maximum(least, 0)


def counters_of(
    limit: Limit, numbers: tuple[Numbers, Numbers], starts: Numbers, step: int, *, pessimistic: bool
) -> Counters:
    """
    Return new counters of a limit.

    Args:
        numbers: The quota and the burst of each caller, which an override may have changed.
        starts: Seconds since the epoch at which windows begin; only those of a fixed window count.
    """
    quota, burst = numbers
    length = limit.window_seconds or 0
    if limit.algorithm == "sliding_window":
        return SlidingCounters(quota, length, step, pessimistic=pessimistic)
    if limit.algorithm == "sliding_log":
        return LogCounters(quota, length, step, pessimistic=pessimistic)
    if limit.algorithm == "token_bucket":
        return BucketCounters(quota, burst, length, step, pessimistic=pessimistic)
    return FixedCounters(quota, starts, step, pessimistic=pessimistic)
