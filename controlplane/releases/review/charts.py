"""Charts as SVG from the server: x in per cent and y in pixels, so that text never stretches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from controlplane.releases.review.verdicts import WatchedHour

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.histograms import UsageHistogram

HEIGHT = 150
GAP = 0.1


@dataclass(frozen=True, slots=True)
class Column:
    """A bar of a chart, in per cent of the width and in pixels from the top."""

    label: str
    callers: int
    x: float
    width: float
    middle: float
    y: float
    height: float
    is_over: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """
    A histogram as the template draws it.

    Attributes:
        line: Where the quota lies, in per cent of the width. None if the moment is no window of the limit.
        rows: The lines of the grid, each with its height in pixels and its number.
    """

    columns: list[Column]
    line: float | None
    rows: list[tuple[float, int]]
    quota: int
    moment: str
    height: int = HEIGHT

    @property
    def over(self) -> int:
        return sum(column.callers for column in self.columns if column.is_over)

    @property
    def under(self) -> int:
        return sum(column.callers for column in self.columns if not column.is_over)


def plot(histogram: UsageHistogram) -> Plot:
    """Return where each bar of a histogram, its grid and its line lie."""
    step = max(1, -(-histogram.most // 4))
    top = 4 * step
    wide = 100 / len(histogram.bars)
    columns = []
    for place, bar in enumerate(histogram.bars):
        height = HEIGHT * bar.callers / top
        is_over = histogram.is_of_window and bar.least > histogram.quota
        x = place * wide
        columns.append(
            Column(
                bar.label,
                bar.callers,
                round(x + wide * GAP, 2),
                round(wide * (1 - 2 * GAP), 2),
                round(x + wide / 2, 2),
                round(HEIGHT - height, 1),
                round(height, 1),
                is_over,
            )
        )
    under = sum(not column.is_over for column in columns)
    line = round(under * wide, 2) if histogram.is_of_window else None
    rows = [(round(HEIGHT - HEIGHT * number / top, 1), number) for number in range(0, top + 1, step)]
    return Plot(columns, line, rows, histogram.quota, histogram.moment)


@dataclass(frozen=True, slots=True)
class Stack:
    """A bar of three parts, from the bottom: allowed, allowed although the shadow would deny, denied."""

    at: datetime
    allowed: int
    would_deny: int
    denied: int
    x: float
    width: float
    parts: list[tuple[str, float, float]]


def by_hour(hours: Sequence[WatchedHour]) -> dict[str, object]:
    """Return a stacked bar for each hour, and the lines of the grid."""
    most = max((hour.allowed + hour.denied for hour in hours), default=0)
    step = max(1, -(-most // 4))
    wide = 100 / max(1, len(hours))
    stacks = []
    for place, hour in enumerate(hours):
        numbers = (hour.allowed - hour.would_deny, hour.would_deny, hour.denied)
        parts, below = list[tuple[str, float, float]](), 0
        for kind, number in zip(("sgp-under", "sgp-over", "sgp-denied"), numbers, strict=True):
            below += number
            parts.append((kind, round(HEIGHT * (1 - below / (4 * step)), 1), round(HEIGHT * number / (4 * step), 1)))
        place_of = round(place * wide + wide * GAP, 2), round(wide * (1 - 2 * GAP), 2)
        stacks.append(Stack(hour.at, numbers[0], numbers[1], numbers[2], *place_of, parts))
    rows = [(round(HEIGHT - HEIGHT * number / (4 * step), 1), number) for number in range(0, 4 * step + 1, step)]
    return {"stacks": stacks, "rows": rows}
