"""
The least and the most requests that limits may have denied, when only the requests of each bin of time are known.

All callers are replayed at once, one bin after the other, as columns of numpy. The optimistic pass lets the requests of
a bin come when the counters have most room, the pessimistic one when they have least. The exact arithmetic is that of
`enforcement.model.algorithms`; `controlplane.preview.replay` asks it where the two passes differ.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np

from enforcement.model.limits import Limit

Numbers = np.ndarray


class Counters(Protocol):
    """The counters of all callers under one limit."""

    def room(self, at: int) -> Numbers: ...
    def add(self, admitted: Numbers, demand: Numbers) -> None: ...

    def part(self, worst: Any) -> None:
        """Take the better state of these optimistic counters and the pessimistic *worst*, and give those the worse."""


class FixedCounters:
    """Windows whose starts are known, which are aligned to the epoch or follow a calendar."""

    def __init__(self, quota: Numbers, starts: Numbers, step: int, *, pessimistic: bool) -> None:
        self.quota, self.starts, self.step, self.pessimistic = quota, starts, step, pessimistic
        self.used = np.zeros_like(quota)
        self.window, self.touched = -1, 1
        self.earlier = self.used

    def room(self, at: int) -> Numbers:
        first = int(np.searchsorted(self.starts, at, "right"))
        last = int(np.searchsorted(self.starts, at + self.step - 1, "right"))
        if first != self.window:
            self.used = np.zeros_like(self.quota)
        self.window, self.touched = last, last - first + 1
        left = self.quota - self.used
        if self.touched == 1 or self.pessimistic:
            return left
        # What a bin that touches several windows may take of the earlier ones.
        self.earlier = left + (self.touched - 2) * self.quota
        return self.earlier + self.quota

    def add(self, admitted: Numbers, demand: Numbers) -> None:
        if self.touched == 1:
            self.used = self.used + admitted
        elif self.pessimistic:  # what is denied as if it came before the last window counts as if it came in it
            self.used = np.minimum(demand, self.quota)
        else:
            self.used = np.maximum(admitted - self.earlier, 0)

    def part(self, worst: Self) -> None:
        self.used, worst.used = np.minimum(self.used, worst.used), np.maximum(self.used, worst.used)


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

    def add(self, admitted: Numbers, demand: Numbers) -> None:
        if self.touched > 1 and not self.pessimistic:  # as many as fit have come before the last window
            admitted = np.maximum(admitted - self.quota * (self.touched - 1), 0)
        self.current = np.minimum(self.current + admitted, self.quota)
        if self.touched > 1 and self.pessimistic:  # it counts for both windows
            self.window, self.previous, self.current = self.window + 1, self.current, np.minimum(admitted, self.quota)

    def part(self, worst: Self) -> None:
        if self.window == worst.window:
            self.current, worst.current = (
                np.minimum(self.current, worst.current),
                np.maximum(self.current, worst.current),
            )
            earlier = self.previous, worst.previous
            self.previous, worst.previous = np.minimum(*earlier), np.maximum(*earlier)

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
        self.quota = quota
        bins = -(-length // step) + 1 if pessimistic else max(1, length // step)
        # A window shorter than a bin passes several times while a bin lasts.
        self.most = quota * (step // length + 1) if length < step and not pessimistic else quota
        self.kept = np.zeros((bins, len(quota)), np.int64)
        self.used = np.zeros_like(quota)
        self.place = 0

    def room(self, at: int) -> Numbers:
        self.used = self.used - self.kept[self.place]
        self.kept[self.place] = 0
        return self.most - self.used

    def add(self, admitted: Numbers, demand: Numbers) -> None:
        self.kept[self.place] = admitted
        self.used = self.used + admitted
        self.place = (self.place + 1) % len(self.kept)

    def part(self, worst: Self) -> None:
        # By what each has admitted since a bin, because the pessimistic window is one bin longer.
        best, most = self._since(), worst._since()
        longest = np.vstack([best, *[best[-1:]] * (len(most) - len(best))])
        self._begin(np.minimum(best, most[: len(best)]))
        worst._begin(np.maximum(longest, most))

    def _since(self) -> Numbers:
        """Return what was admitted since each bin that is kept, the last one first."""
        return np.roll(self.kept, -self.place, axis=0)[::-1].cumsum(axis=0)

    def _begin(self, since: Numbers) -> None:
        self.kept, self.place, self.used = np.diff(since, axis=0, prepend=0)[::-1].copy(), 0, since[-1]


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

    def add(self, admitted: Numbers, demand: Numbers) -> None:
        if self.pessimistic:
            self.level = np.maximum(np.minimum(self.burst, self.level + self.inflow) - demand, 0)
        else:
            spent = np.maximum(self.level - admitted, self.level % 1)
            self.level = np.minimum(self.burst, spent + self.inflow)

    def part(self, worst: Self) -> None:
        self.level, worst.level = np.maximum(self.level, worst.level), np.minimum(self.level, worst.level)


def denied(demand: Numbers, begins: int, step: int, counters: Sequence[Counters]) -> tuple[Numbers, Numbers | None]:
    """
    Return the denied requests by bin and caller, in the shape of *demand*, and which buckets are full before each bin.

    The latter is None if there is no bucket. A window forgets by itself, but a bucket that is used may never fill.

    Args:
        demand: Requests by bin and caller.
        begins: Seconds since the epoch at which the first bin begins.
        step: Seconds of a bin.
        counters: A request must find room in all of them.
    """
    found = np.empty_like(demand)
    buckets = [one for one in counters if isinstance(one, BucketCounters)]
    full = np.ones(demand.shape, bool) if buckets else None
    for number in range(len(demand)):
        wanted = demand[number].astype(np.int64)
        for bucket in buckets:
            full[number] &= bucket.is_full
        rooms = [one.room(begins + number * step) for one in counters]
        admitted = np.minimum(wanted, np.maximum(np.minimum.reduce(rooms), 0))
        for one in counters:
            one.add(admitted, wanted)
        found[number] = wanted - admitted
    return found, full


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
