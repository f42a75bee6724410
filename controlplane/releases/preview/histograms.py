"""Callers by the requests of their busiest moment."""

from dataclasses import dataclass

import numpy as np

from controlplane.releases.preview.judging import window_seconds
from controlplane.releases.preview.replay import Case
from controlplane.traffic.callers.chunks import HEAD
from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS
from enforcement.usage.spread import PART_SECONDS

BELOW, ABOVE = 5, 7
_PART, _MINUTE = HEAD.index("part"), HEAD.index("minute")
# The moments whose greatest number of requests is known of each caller.
MOMENTS = {PART_SECONDS: "ten seconds", MINUTE_SECONDS: "minute", HOUR_SECONDS: "hour", DAY_SECONDS: "24 hours"}


@dataclass(frozen=True, slots=True)
class Bar:
    """How many callers had from *least* to *most* requests. *most* is None for the last bar, which has no end."""

    least: int
    most: int | None
    callers: int

    @property
    def label(self) -> str:
        if self.most is None:
            return f"over {self.least - 1:,}"
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,}–{self.most:,}"


@dataclass(frozen=True, slots=True)
class UsageHistogram:
    """
    Callers by the requests in their busiest moment.

    Attributes:
        moment: What the moment is, in words, such as "minute".
        quota: The quota of the limit. A bar ends with it.
        is_of_window: Whether the moment is as long as the window, so that callers above the quota exceed it.
    """

    moment: str
    quota: int
    bars: list[Bar]
    is_of_window: bool

    @property
    def most(self) -> int:
        return max((bar.callers for bar in self.bars), default=0)


def histogram_of(case: Case, heads: np.ndarray, active: np.ndarray) -> UsageHistogram:
    """
    Return the histogram of the active callers, by the longest moment that is not longer than the limit's window.

    Args:
        heads: By caller, hour and the names of HEAD.
        active: Whether each caller sent requests.
    """
    length = case.limit.window_seconds or window_seconds(case.limit)
    moment = max((one for one in MOMENTS if one <= length), default=PART_SECONDS)
    busiest = {
        PART_SECONDS: heads[:, :, _PART].max(axis=1),
        MINUTE_SECONDS: heads[:, :, _MINUTE].max(axis=1),
        HOUR_SECONDS: heads[:, :, 0].max(axis=1),
        DAY_SECONDS: heads[:, :, 0].sum(axis=1),
    }[moment][active]
    quotas = set(np.array(case.quotas)[active].tolist())
    # If all callers have the same override, the line is at its quota.
    quota = quotas.pop() if len(quotas) == 1 else case.limit.quota
    edges = edges_of(quota)
    places = np.searchsorted(edges, busiest, "left")
    callers = np.bincount(places, minlength=len(edges) + 1).tolist()
    bars = [
        Bar(least, most, callers[place])
        for place, (least, most) in enumerate(zip([1, *(e + 1 for e in edges)], [*edges, None], strict=True))
    ]
    return UsageHistogram(MOMENTS[moment], quota, bars, moment == length)


def edges_of(quota: int) -> list[int]:
    """Return the greatest number of requests of each bar but the last, one of which is the quota."""
    quota = max(1, quota)
    edges = {max(1, quota * place // BELOW) for place in range(1, BELOW + 1)}
    return sorted(edges | {quota + -(-quota * place // BELOW) for place in range(1, ABOVE)})
