"""
The preview of a policy, which says whom its limits would have denied, and of how much that is known.

The heads of hours tell at once which callers no limit could have denied. Only the others are replayed.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np

from controlplane.objects.policies.models import Policy
from controlplane.releases.preview.callers import Callers, Span, hour_of
from controlplane.releases.preview.histograms import UsageHistogram, histogram_of
from controlplane.releases.preview.judging import Unknown, cautions_about, unknown_about, window_seconds
from controlplane.releases.preview.replay import MOST_STEPS, Case, Days, Outcome, followed_seconds, replay
from controlplane.releases.preview.supposed import SAVED, Supposed
from controlplane.traffic.callers import recording
from controlplane.traffic.callers.chunks import HEAD, read_hours
from controlplane.traffic.callers.kinds import DAY, EVERYTHING, PROJECT, Caller
from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, SECOND_US, from_us
from enforcement.model.limits import Limit
from enforcement.usage.spread import PART_SECONDS

MOST_AFFECTED = 10
# Callers that are replayed together, in bins of ten seconds or of minutes, and their bins. More at once take less time
# and more memory, which is 4 bytes a bin.
CALLERS_AT_ONCE, COARSE_AT_ONCE = 1_000, 5_000
CELLS_AT_ONCE = 15_000_000
# With more callers to replay, or a longer span, bins are minutes, so that a preview takes no longer.
MOST_FINE = 2500
LONGEST_FINE = 2 * DAY_SECONDS
# Bins of time by callers that one preview replays. A day of 10,000 callers has fewer.
MOST_CELLS = 120_000_000
OTHER_COSTS = (
    "Judged as if each request cost one, because what single requests cost is not recorded. Some cost another."
)
_PART, _PARTS, _MINUTE, _MINUTES = (HEAD.index(name) for name in ("part", "parts", "minute", "minutes"))


@dataclass(frozen=True, slots=True)
class Range:
    """A number that is likely, between the least and the most that it may be."""

    low: int
    likely: int
    high: int

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def to_json(self) -> dict[str, int]:
        return {"low": self.low, "likely": self.likely, "high": self.high}


@dataclass(frozen=True, slots=True)
class Affected:
    """A caller of which requests would have been denied."""

    caller: Caller
    requests: int
    denied: Range
    busiest: int


@dataclass(frozen=True, slots=True)
class Preview:
    """
    The denials of limits, replayed over recorded requests.

    Attributes:
        starts: Start of the first whole hour.
        ends: Until when requests are recorded; the end of the last hour at most.
        concerned: Callers that have the policy.
        callers: Those of them that sent requests.
        requests: Their requests, allowed and denied.
        denied: How many requests would have been denied at the first try.
        caught: How many callers would have been denied at least once.
        affected: The callers with most denials.
        overrides: Callers that are judged by a quota of their own.
        unknown: The limits that recorded usage cannot judge.
        cautions: What else the reader has to know.
        step: Seconds of a bin of time, 0 if nothing was replayed.
        is_summary: Whether the range of callers is known only from their busiest moments, and no request was replayed.
        histogram: Callers by their busiest moment. None if no limit could be judged.
        took_seconds: How long it took.
        is_unread: Whether what is recorded cannot be read, so that nothing is known.
    """

    starts: datetime
    ends: datetime
    concerned: int = 0
    callers: int = 0
    requests: int = 0
    denied: Range = Range(0, 0, 0)
    caught: Range = Range(0, 0, 0)
    affected: list[Affected] = field(default_factory=list)
    overrides: int = 0
    unknown: list[Unknown] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    step: int = 0
    is_summary: bool = False
    histogram: UsageHistogram | None = None
    took_seconds: float = 0.0
    is_unread: bool = False

    @property
    def has_data(self) -> bool:
        """Whether a limit was judged by requests of at least one caller."""
        return self.callers > 0 and self.histogram is not None

    @property
    def silent(self) -> int:
        """Callers that have the policy and sent nothing, of which nothing is known."""
        return self.concerned - self.callers

    @property
    def is_exact(self) -> bool:
        return self.is_point and not self.cautions

    @property
    def is_point(self) -> bool:
        """Whether the numbers are known for sure, if what the cautions say makes no difference."""
        return self.denied.is_exact and self.caught.is_exact and not self.is_summary

    @property
    def more_callers(self) -> int:
        return max(0, self.caught.likely - len(self.affected))

    @property
    def more_denied(self) -> int:
        return max(0, self.denied.likely - sum(one.denied.likely for one in self.affected))


class Recorded:
    """
    The recorded requests of the callers of a policy. They are read once, for the previews of several limits.

    Args:
        policy: Its tokens, projects and overrides count. It need not be saved.
        span: A length of time that ends now, or its start and end.
        projects: The ids of the projects that the reader may see. None: all of them.
        supposed: The state after a change.
    """

    def __init__(
        self,
        policy: Policy,
        now: datetime,
        span: timedelta | tuple[datetime, datetime] = DAY,
        projects: Collection[str] | None = None,
        supposed: Supposed = SAVED,
    ) -> None:
        self._began = time.perf_counter()
        known_until = recording.fold_few(now)
        starts, ends = span if isinstance(span, tuple) else (hour_of(known_until) - span, known_until)
        self._span = Span.of(starts, ends)
        self._ends = min(ends, known_until)
        self._callers = Callers(policy, self._span, now, projects, supposed)

    @cached_property
    def _heads(self) -> np.ndarray:
        return self._callers.heads(self._span)

    def preview(self, limits: Sequence[Limit], steps: int = MOST_STEPS) -> Preview:
        """
        Return what *limits* would have denied. Also those in shadow are judged as if they were enforced.

        At most so many *steps* of the reference algorithms are taken.
        """
        began, self._began = self._began, 0.0
        began = began or time.perf_counter()
        found = self._judged(limits, MOST_AFFECTED, steps)
        return replace(found, took_seconds=time.perf_counter() - began)

    def affected(self, limits: Sequence[Limit]) -> list[Affected]:
        """Return all callers of which requests would have been denied, those with most denials first."""
        return self._judged(limits, None, MOST_STEPS).affected

    def suspects(self, limits: Sequence[Limit]) -> list[Caller]:
        """Return the callers that *limits* could have denied, of which a replay finds out whether they would have."""
        _, _, could = self._known(limits)
        return [self._callers.all[place] for place in could]

    def preview_of(self, limits: Sequence[Limit], callers: Iterable[Caller]) -> Preview:
        """
        Return the preview in which only some of the callers are replayed, however many there are in all.

        Those that have lost the policy since they were chosen are left out.
        """
        known, cases, _ = self._known(limits)
        places = np.array(
            [self._callers.places[caller] for caller in callers if caller in self._callers.places], np.int64
        )
        return self._replayed(known, cases, places, MOST_AFFECTED, MOST_STEPS) if cases else known

    def _judged(self, limits: Sequence[Limit], most: int | None, steps: int) -> Preview:
        known, cases, could = self._known(limits)
        if not cases:
            return known
        if len(could) * self._span.seconds // PART_SECONDS > MOST_CELLS:
            known = replace(known, histogram=histogram_of(cases[0], self._sent, self._requests > 0))
            return replace(known, is_summary=True, caught=Range(0, 0, len(could)))
        return self._replayed(known, cases, could, most, steps)

    @property
    def _sent(self) -> np.ndarray:
        """The heads of the hours within the span."""
        return self._heads[:, self._span.before // HOUR_SECONDS :]

    @property
    def _requests(self) -> np.ndarray:
        return self._sent[:, :, 0].sum(axis=1)

    def _replayed(
        self, known: Preview, cases: Sequence[Case], could: np.ndarray, most: int | None, steps: int
    ) -> Preview:
        """Return the preview with the outcome of the callers at the places *could*."""
        requests, of_span = self._requests, self._sent
        outcome = _replayed(self._callers, could, cases, self._span, steps, of_span)
        # The replay has made the heads of some callers exact.
        known = replace(known, histogram=histogram_of(cases[0], of_span, requests > 0))
        return _with_outcome(known, self._callers, could, outcome, (requests, of_span), most)

    def _known(self, limits: Sequence[Limit]) -> tuple[Preview, list[Case], np.ndarray]:
        """Return what is known without a replay, the limits that can be judged, and the places of the suspects."""
        nobody = np.zeros(0, np.int64)
        unknown = [Unknown(limit.name, reason) for limit in limits if (reason := unknown_about(limit))]
        limits = [limit for limit in limits if not unknown_about(limit)]
        callers, span = self._callers, self._span
        known = Preview(_instant(span.begins), self._ends, concerned=callers.concerned, unknown=unknown)
        if not callers.concerned:
            return known, [], nobody
        requests = self._requests
        active = int((requests > 0).sum())
        known = replace(known, callers=active, requests=int(requests.sum()))
        if not limits or not active:
            return known, [], nobody
        cases = [callers.case(limit) for limit in limits]
        of_costs = [] if callers.are_costs_one else [OTHER_COSTS]
        could = np.flatnonzero(np.any([could_deny(case, self._heads) for case, _ in cases], axis=0))
        known = replace(
            known,
            overrides=max(held for _, held in cases),
            cautions=list(dict.fromkeys([*of_costs, *(text for limit in limits for text in cautions_about(limit))])),
        )
        return known, [case for case, _ in cases], could


def _replayed(
    callers: Callers, could: np.ndarray, cases: Sequence[Case], span: Span, steps: int, heads: np.ndarray
) -> Outcome:
    """
    Return the outcome of the callers at the places *could*, in that order.

    The *heads* of those that count many tokens together become exact, as they were sums of each token's own peaks.
    """
    found, at_once = [], CALLERS_AT_ONCE
    coarse = len(could) > MOST_FINE or span.seconds > LONGEST_FINE
    # The days of which no counter remembers anything are not read.
    span = replace(span, before=followed_seconds([case.limit for case in cases]))
    if coarse:
        at_once = min(COARSE_AT_ONCE, CELLS_AT_ONCE * MINUTE_SECONDS // (span.before + span.seconds))
    for start in range(0, len(could), at_once):
        places = could[start : start + at_once].tolist()
        chosen = [case.at(places) for case in cases]
        days = callers.days(places, span, stored=coarse)
        for place, of_caller in zip(places, days, strict=True):
            if callers.all[place][0] in (PROJECT, EVERYTHING):
                _set_heads(heads[place], of_caller, span)
        outcome, steps = replay(days, chosen, span.begins, span.ends, steps, coarse=coarse)
        found.append(outcome)
    if not found:
        nothing = np.zeros(0, np.int64)
        return Outcome(nothing, nothing, nothing, 0, True)
    low, likely, high = (np.concatenate([getattr(one, name) for one in found]) for name in ("low", "likely", "high"))
    return Outcome(low, likely, high, max(one.step for one in found), all(one.is_whole for one in found))


def _set_heads(heads: np.ndarray, days: Days, span: Span) -> None:
    """Set the heads of a caller, by hour of the span, to those of its recorded days."""
    for start, chunk in days:
        first = (start - span.begins) // HOUR_SECONDS
        inside = slice(max(0, first), max(0, first + 24))
        heads[inside] = read_hours([chunk.whole().hours()])[0][inside.start - first :][: len(heads[inside])]


def _with_outcome(
    known: Preview,
    callers: Callers,
    could: np.ndarray,
    outcome: Outcome,
    sent: tuple[np.ndarray, np.ndarray],
    most: int | None,
) -> Preview:
    """Return the preview with what a replay has found, of which it lists *most* callers, or all for None."""
    requests, heads = sent
    low, likely, high = outcome.low, outcome.likely, outcome.high
    order = np.lexsort((could, -likely))[:most]
    affected = [
        Affected(
            callers.all[could[n]],
            int(requests[could[n]]),
            Range(int(low[n]), int(likely[n]), int(high[n])),
            int(heads[could[n], :, _MINUTE].max()),
        )
        for n in order
        if likely[n] > 0
    ]
    cautions = known.cautions
    if not outcome.is_whole:
        cautions = [*cautions, "Too many callers to replay each one, so the middle of the range is shown for some."]
    return replace(
        known,
        denied=Range(int(low.sum()), int(likely.sum()), int(high.sum())),
        caught=Range(int((low > 0).sum()), int((likely > 0).sum()), int((high > 0).sum())),
        affected=affected,
        cautions=cautions,
        step=outcome.step,
    )


def could_deny(case: Case, heads: np.ndarray) -> np.ndarray:
    """
    Return which callers a limit could have denied at all, by the most that any span of their hours had.

    Args:
        heads: By caller, hour and the names of HEAD, as of `Callers.heads`.
    """
    quotas, bursts = np.array(case.quotas), np.array(case.bursts)
    limit, sent = case.limit, heads[:, :, 0]
    hours = _pairs(sent).max(axis=1) if sent.shape[1] > 1 else sent[:, 0]
    tens = np.maximum(_pairs(heads[:, :, _PART]), 0).max(axis=1)
    tens = np.maximum(tens, heads[:, :, _PARTS].max(axis=1))
    minutes = np.maximum(_pairs(heads[:, :, _MINUTE]).max(axis=1), heads[:, :, _MINUTES].max(axis=1))
    if limit.algorithm == "token_bucket":
        rate = quotas / (limit.window_seconds or 1)
        short, long = ((tens, 0), (minutes, PART_SECONDS)), ((hours, MINUTE_SECONDS), (sent.sum(axis=1), HOUR_SECONDS))
        at_once, later = (
            np.any([most > bursts + rate * least for most, least in spans], axis=0) for spans in (short, long)
        )
        return at_once | (later & ~_is_refilled(heads[:, :, _MINUTE].max(axis=1), minutes, bursts, rate))
    return _most_in(limit, heads, (tens, minutes, hours)) > quotas


def _is_refilled(minute: np.ndarray, pair: np.ndarray, bursts: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """
    Return of which callers no span of more than a minute could exceed a bucket.

    A span of more than k - 1 and at most k minutes touches k + 1 of them. If no *minute* has more requests than flow
    in, it exceeds the inflow by at most two minutes. If no *pair* of minutes has, by at most one and a half pairs.
    """
    inflow = rate * MINUTE_SECONDS
    by_minute = (minute <= inflow) & (2 * minute <= bursts)
    return by_minute | ((pair <= 2 * inflow) & (1.5 * pair <= bursts))


def _pairs(numbers: np.ndarray) -> np.ndarray:
    """Return at least the sum of each two hours that follow each other, so also what a span across them had."""
    return numbers[:, 1:] + numbers[:, :-1] if numbers.shape[1] > 1 else numbers


def _most_in(limit: Limit, heads: np.ndarray, most: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    tens, minutes, hours = most
    length = window_seconds(limit)
    if limit.algorithm == "fixed_window" and length == MINUTE_SECONDS:
        return heads[:, :, _MINUTE].max(axis=1)
    if length <= PART_SECONDS:
        return tens
    if length <= MINUTE_SECONDS:
        return minutes
    of_minutes = (-(-length // MINUTE_SECONDS) + 1) * heads[:, :, _MINUTE].max(axis=1)
    return np.minimum(of_minutes, hours if length <= HOUR_SECONDS else heads[:, :, 0].sum(axis=1))


def _instant(second: int) -> datetime:
    return from_us(second * SECOND_US).astimezone(UTC)
