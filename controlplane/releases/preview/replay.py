"""
A replay of recorded requests under limits, which counts the denials at the first try.

A pass over bins of time gives the least and the most. Where these differ, the reference algorithms replay the requests
of a caller, spread evenly over the seconds in which it was active.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import batched, chain
from typing import Any

import numpy as np

from controlplane.releases.preview.judging import MOST_BEFORE, is_exact, starts_of, step_seconds, window_seconds
from controlplane.traffic.callers.chunks import Chunk, StoredChunk
from controlplane.traffic.callers.envelopes import Counters, admitted, counters_of, deniable
from enforcement.model.algorithms import ALGORITHMS, Spec
from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, SECOND_US
from enforcement.model.limits import Limit
from enforcement.plan.binding import BoundLimit
from enforcement.usage.spread import PART_SECONDS, PARTS

# Steps of the reference algorithms in one preview, which take about a second. The other callers get the middle.
MOST_STEPS = 250_000
# With more requests than this at an unknown second, ten seconds would be a false precision.
COARSE_SHARE = 0.01
# Callers of whom is found out together where requests may be denied.
LOOKED_AT_ONCE = 500
# In a longer window it makes no difference at which of ten seconds a request comes.
FINE_BELOW = 600

Days = Sequence[tuple[int, Chunk | StoredChunk]]
"""The recorded days of one caller, each with the second since the epoch at which it begins."""


@dataclass(frozen=True, slots=True)
class Case:
    """A limit, with the quota and the burst that each caller has, in the order of the callers."""

    limit: Limit
    quotas: Sequence[int]
    bursts: Sequence[int]

    def of(self, number: int) -> Limit:
        """Return the limit as one caller has it."""
        # A quota of nobody else's is an override, which a limit that is published may have.
        fields = {**self.limit.to_json(), "quota": int(self.quotas[number])}
        if self.limit.algorithm == "token_bucket":
            fields["burst"] = int(self.bursts[number])
        return Limit.from_json(fields, published=True)

    def at(self, numbers: Sequence[int]) -> "Case":
        """Return the case of some of the callers only."""
        return Case(self.limit, [self.quotas[n] for n in numbers], [self.bursts[n] for n in numbers])


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    Requests that would have been denied, by caller.

    Attributes:
        low: With the most favourable order of requests within a bin of time.
        likely: With requests spread over the active seconds.
        high: With the least favourable order.
        step: Seconds of a bin.
        is_whole: Whether the reference algorithms replayed each caller that the bins left open.
    """

    low: np.ndarray
    likely: np.ndarray
    high: np.ndarray
    step: int
    is_whole: bool


def replay(
    callers: Sequence[Days],
    cases: Sequence[Case],
    begins: int,
    ends: int,
    steps: int = MOST_STEPS,
    *,
    coarse: bool = False,
) -> tuple[Outcome, int]:
    """
    Return what the limits of *cases*, all together, would have denied of the callers, and how many steps are left.

    Args:
        callers: The recorded days of each caller. Days before *begins* only fill the counters.
        begins: Seconds since the epoch, a whole hour, as is *ends*.
        steps: How many steps of the reference algorithms may be taken.
        coarse: Whether bins of a minute are enough, which take a sixth of the time.
    """
    limits = [case.limit for case in cases]
    step = step_seconds(limits, coarse=coarse or _is_coarse(callers))
    bins = _Bins(callers, begins - followed_seconds(limits), begins, ends, step)
    most_before, most = bins.admitted(cases, pessimistic=False)
    if all(is_exact(limit, step) for limit in limits):
        exact = bins.sent - (most - most_before)
        return Outcome(exact, exact, exact, step, True), steps
    least_before, least = bins.admitted(cases, pessimistic=True)
    # The permits that were admitted before the span are not known, but have bounds, too.
    low, high = bins.sent - (most - least_before), bins.sent - (least - most_before)
    low, high = np.maximum(low, 0), np.minimum(high, bins.sent)
    likely, left = _likely(bins, cases, (low, high), steps)
    return Outcome(np.minimum(low, likely), likely, np.maximum(high, likely), step, left >= 0), max(left, 0)


def followed_seconds(limits: Sequence[Limit]) -> int:
    """Return for how long counters are followed before the span, in whole hours. They begin empty."""
    # The denials of a sliding window depend on the window before, and so on the denials of that. A bucket holds what
    # all requests since it was full have left.
    several = ("sliding_window", "token_bucket")
    longest = max(window_seconds(limit) * (8 if limit.algorithm in several else 2) for limit in limits)
    return -(-min(MOST_BEFORE, longest) // HOUR_SECONDS) * HOUR_SECONDS


class _Bins:
    """The requests of callers by bins of time, from *origin* on. Those before *begins* only fill the counters."""

    def __init__(self, callers: Sequence[Days], origin: int, begins: int, ends: int, step: int) -> None:
        self.callers, self.origin, self.begins, self.ends, self.step = callers, origin, begins, ends, step
        self.demand = bins_of(callers, origin, ends, step)
        self.turn = (begins - origin) // step
        self.sent = self.demand[self.turn :].sum(axis=0, dtype=np.int64)

    def admitted(self, cases: Sequence[Case], *, pessimistic: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the most, or if *pessimistic* the least, that is admitted before the span and in all, by caller."""
        return admitted(self.demand, self.origin, self.step, self._counters(cases, pessimistic=pessimistic), self.turn)

    def undecided(self, cases: Sequence[Case], numbers: Sequence[int]) -> "_Undecided":
        """Return where requests of the callers with these *numbers* may be denied."""
        counters = self._counters([case.at(numbers) for case in cases], pessimistic=True)
        chosen = np.ascontiguousarray(self.demand[:, numbers])
        return _Undecided(self.origin, self.step, *deniable(chosen, self.origin, self.step, counters))

    def _counters(self, cases: Sequence[Case], *, pessimistic: bool) -> list[Counters]:
        return [
            counters_of(
                case.limit,
                (np.array(case.quotas, np.int64), np.array(case.bursts, np.int64)),
                np.array(starts_of(case.limit, self.origin, self.ends), np.int64),
                self.step,
                pessimistic=pessimistic,
            )
            for case in cases
        ]


def bins_of(callers: Sequence[Days], origin: int, ends: int, step: int) -> np.ndarray:
    """Return the requests by bin and caller. Those at an unknown second are spread evenly over their minute."""
    found = np.zeros((len(callers), (ends - origin) // step), np.uint32)
    of_minute = MINUTE_SECONDS // step
    for number, days in enumerate(callers):
        for start, held in days:
            chunk = held if of_minute == 1 else held.whole()
            minutes, demand = chunk.by_minute()
            places = (start - origin) // step + minutes * of_minute
            inside = slice(*np.searchsorted(places, (0, found.shape[1])))
            if of_minute == 1:
                found[number, places[inside]] = demand[inside]
            else:
                found[number, places[inside, None] + np.arange(PARTS)] = _placed(chunk.whole())[inside]
    return np.ascontiguousarray(found.T)


def _placed(chunk: Chunk) -> np.ndarray:
    """Return the requests of each ten seconds of a chunk, with those at an unknown second."""
    unplaced = chunk.unplaced
    if not unplaced.any():
        return chunk.parts
    each, rest = np.divmod(unplaced, PARTS)
    return chunk.parts + each[:, None] + (np.arange(PARTS) < rest[:, None])


def _is_coarse(callers: Sequence[Days]) -> bool:
    unplaced = demand = 0
    for _, held in chain.from_iterable(callers):
        chunk = held.whole()
        unplaced, demand = unplaced + int(chunk.unplaced.sum()), demand + int(chunk.demand.sum())
    return unplaced > COARSE_SHARE * demand


@dataclass(frozen=True, slots=True)
class _Undecided:
    """Where requests may be denied, by bin and caller, and which buckets are surely full before a bin."""

    origin: int
    step: int
    denied: np.ndarray
    full: np.ndarray | None

    def regions(self, number: int, memory: int) -> np.ndarray:
        """
        Return the spans, as rows of two seconds, outside of which nothing is denied and no charge is felt any more.

        Before the first denial all requests pass, so a counter may begin empty where it would remember nothing.

        Args:
            number: The caller.
            memory: For how many seconds a window remembers a charge.
        """
        hot = np.flatnonzero(self.denied[:, number])
        starts = hot * self.step + self.origin - memory
        if self.full is not None:
            full = np.flatnonzero(self.full[:, number])
            last = full[np.searchsorted(full, hot, "right") - 1]  # the first bin begins with a full bucket
            starts = np.minimum(starts, last * self.step + self.origin)
        ends = hot * self.step + self.origin + self.step
        new = np.append([True], starts[1:] > ends[:-1])
        return np.column_stack([starts[new], ends[np.append(np.flatnonzero(new)[1:] - 1, len(hot) - 1)]])


def _likely(
    bins: _Bins, cases: Sequence[Case], bounds: tuple[np.ndarray, np.ndarray], steps: int
) -> tuple[np.ndarray, int]:
    """Return the likely denials by caller, and the steps left, which are below 0 if they did not suffice."""
    low, high = bounds
    found = (low + high) // 2
    left_open = np.flatnonzero(low != high)
    left_open = left_open[np.argsort(-high[left_open], kind="stable")].tolist()
    for some in batched(left_open, LOOKED_AT_ONCE):
        if not steps:
            return found, -1  # each caller takes at least one
        undecided = bins.undecided(cases, some)
        for place, number in enumerate(some):
            limits = [case.of(number) for case in cases]
            regions = undecided.regions(place, 2 * max(map(window_seconds, limits)))
            fine = min(map(window_seconds, limits)) < FINE_BELOW
            events = _events(bins.callers[number], regions, bins.ends, fine=fine)
            if len(events) > steps:
                return found, -1
            steps -= len(events)
            found[number] = sum(count for second, count in _first_try(limits, events) if second >= bins.begins)
    return found, steps


def _events(days: Days, regions: np.ndarray, ends: int, *, fine: bool) -> list[list[int]]:
    """
    Return [region, second since the epoch, requests] in order, for the requests of a caller within the regions.

    They are spread evenly over the active seconds of their ten seconds, or come together if this is not *fine*.
    """
    result = []
    for start, held in days:
        chunk = held.whole()
        begins = start + chunk.minutes * MINUTE_SECONDS
        nearest = np.searchsorted(regions[:, 1], begins, "right")
        inside = (nearest < len(regions)) & (begins < ends)
        inside[inside] = regions[nearest[inside], 0] < begins[inside] + MINUTE_SECONDS
        parts = _placed(chunk)[inside]
        counts = _by_second(parts, chunk.seconds[inside]) if fine else parts
        rows, places = np.nonzero(counts)
        seconds = begins[inside][rows] + places * (1 if fine else PART_SECONDS)
        result += np.column_stack([nearest[inside][rows], seconds, counts[rows, places]]).tolist()
    return result


def _by_second(parts: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return the requests of each second of some minutes. Where no second is known to be active, all are."""
    active = (bits[:, None] >> np.arange(MINUTE_SECONDS, dtype=np.uint64) & np.uint64(1)).astype(np.int64)
    active = active.reshape(len(bits), PARTS, PART_SECONDS)
    active[~active.any(axis=2)] = 1
    each, rest = np.divmod(parts, active.sum(axis=2))
    counts = active * (each[:, :, None] + (active.cumsum(axis=2) <= rest[:, :, None]))
    return counts.reshape(len(bits), MINUTE_SECONDS)


def _first_try(limits: Sequence[Limit], events: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yield (second, denied requests) as the reference algorithms decide, all limits of a request together."""
    bounds = [BoundLimit(limit, "{preview}", "token") for limit in limits]
    present, renewed = -1, 0.0
    counters: list[tuple[Any, Spec]] = []
    for region, second, count in events:
        now = second * SECOND_US
        if region != present or now >= renewed:
            specs = [bound.spec(now) for bound in bounds]
            counting = (
                [ALGORITHMS[spec.letter]() for spec in specs] if region != present else [one for one, _ in counters]
            )
            counters, present = list(zip(counting, specs, strict=True)), region
            renewed = min((spec.windows[2] for spec in specs if spec.windows), default=math.inf)
        admitted = count
        for counter, spec in counters:
            counter.read(now, spec)
            counter.last = now  # as a charge of nothing would set it, so that no time is counted twice
            room = counter.room()
            if room < admitted:
                admitted = math.floor(room)
        if admitted > 0:
            for counter, _ in counters:
                counter.add(admitted, "")
            if admitted == count:
                continue
            yield second, count - admitted
        else:
            yield second, count


def seconds_of_day(day: date) -> int:
    """Return the second since the epoch at which a day in UTC begins."""
    return (day - date(1970, 1, 1)).days * DAY_SECONDS
