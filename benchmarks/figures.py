"""What the product promises about its speed, and the judgement of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from benchmarks.measure import Series

HELD, AIMED, MISSED, ABSENT, TOLD, NOISY = "held", "aim", "MISSED", "not available yet", "", "no verdict"
QUIET = 0.20
"""How far apart the rounds of the plainest call may lie, (most - least) / median, for a verdict on its group."""


@dataclass(frozen=True, slots=True)
class Bar:
    """
    A bound on a ratio: what must hold, and what we aim at.

    Args:
        at_least: More is better.
        counts: The ratio is a count, which no noise changes.
    """

    must: float
    aim: float
    at_least: bool = False
    inverse: bool = False
    counts: bool = False

    def judge(self, ratio: float) -> str:
        """Return whether a ratio holds it."""
        sign = -1 if self.at_least else 1
        if sign * ratio > sign * self.must:
            return MISSED
        return HELD if sign * ratio > sign * self.aim else AIMED

    def told(self, bound: float) -> str:
        """Return a bound as the table shows it."""
        text = f"1/{1 / bound:.0f}" if self.inverse else f"{bound:.2f}"
        return f"≥ {bound:g}x" if self.at_least else f"≤ {text}"


@dataclass(frozen=True, slots=True)
class Row:
    """
    One line of the table.

    Args:
        figure: What is compared.
        ours, theirs: The two medians with their unit, as people read them.
        ratio: Median of the ratios; None: not measured, for a reason in *ours*.
        bar: None: nothing is promised.
        noise: That of its group. None: it is not known, or does not matter.
    """

    figure: str
    ours: str
    theirs: str
    ratio: float | None
    bar: Bar | None = None
    noise: float | None = None

    @property
    def mark(self) -> str:
        """
        ``aim``, ``held`` or ``MISSED``; ``no verdict`` in a noisy group; ``not available yet``; or nothing where
        nothing is promised.
        """
        if self.ratio is None:
            return ABSENT
        if self.bar is None:
            return TOLD
        is_noisy = self.noise is not None and self.noise > QUIET and not self.bar.counts
        return NOISY if is_noisy else self.bar.judge(self.ratio)

    @property
    def told(self) -> str:
        """The ratio as the table shows it."""
        if self.ratio is None:
            return "-"
        if self.bar and self.bar.at_least:
            return f"{self.ratio:.1f}x" if self.ratio >= 2 else f"{self.ratio:.2f}x"
        return f"1/{1 / self.ratio:.0f}" if self.bar and self.bar.inverse and self.ratio else f"{self.ratio:.2f}"

    def to_json(self) -> dict[str, Any]:
        """Return it with its mark."""
        return {**asdict(self), "mark": self.mark}


@dataclass(frozen=True, slots=True)
class Group:
    """
    Rows that were measured together.

    Args:
        name: Where its candidates stand among all.
        measures: Sentences that say what its figures are.
        series: None: it has none.
        noise: How far apart the rounds of its plainest call lie. None: it has no such call.
        times: How often it was measured. The quietest time is told.
    """

    name: str
    measures: str
    rows: Sequence[Row]
    series: Series | None = None
    noise: float | None = None
    times: int = 1

    @classmethod
    def of(cls, name: str, measures: str, rows: Sequence[Row], series: Series | None, noise: float | None) -> Self:
        """Return a group whose rows know its noise."""
        return cls(name, measures, [replace(row, noise=noise) for row in rows], series, noise)

    @property
    def noise_told(self) -> str:
        """Its noise, and what follows from it; empty if it is not known."""
        if self.noise is None:
            return ""
        repeated = f", the least of {self.times} times" if self.times > 1 else ""
        return f"Noise {self.noise:.0%}{repeated}{': no verdict' * (self.noise > QUIET)}."


EVALSHA = Bar(1.00, 0.75)
PEER = Bar(0.95, 0.70)
THREE_CALLS = Bar(0.40, 0.28)
THREE_TO_ONE = Bar(1.30, 1.20)
CONCURRENT_ONE = Bar(3, 7, at_least=True)
CONCURRENT_THREE = Bar(6, 14, at_least=True)
NO_ERROR = Bar(0, 0, counts=True)
STORE_TIME = Bar(0.50, 0.30)
PIPELINED_ONE = Bar(1.5, 1.4)
PIPELINED_THREE = Bar(3.0, 2.8)
LEASED = Bar(1.5, 3, at_least=True)
KNOWN_DENIAL = Bar(1 / 40, 1 / 100, inverse=True)
DOOR = Bar(0.60, 0.30)
DOOR_LEASED = Bar(1.20, 1.12)
PROXY = Bar(0.30, 0.40, at_least=True)
METERED = Bar(1.00, 60 / 75)
METERED_CHUNK = Bar(1.00, 1 / 2)
METERED_RATE = Bar(0.50, 0.65, at_least=True)
LITELLM = Bar(0.10, 0.05)
KEPT = Bar(1, 1, at_least=True)
LITELLM_RATE = Bar(10, 20, at_least=True)
SHARED_TRIP = Bar(1 / 16, 1 / 16, inverse=True)
RLS = Bar(1 / 3, 1 / 6)
AUTH_REQUEST = Bar(6, 4)
AUTH_REQUEST_LEASED = Bar(4, 2.5)
CHANGE = Bar(2.5, 1.0)
SLOTS = Bar(1.0, 0.5)
BYTES = Bar(1.5, 1.0)
MANY_TOKENS = Bar(1.10, 1.00)


def us(value: float) -> str:
    """Return microseconds, readable."""
    return f"{value:.2f} us" if value < 10 else f"{value:.1f} us"


def rate(value: float) -> str:
    """Return decisions a second, readable."""
    if value < 1e3:
        return f"{value:.0f}/s"
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"


def absent(figure: str, bar: Bar | None) -> Row:
    """Return the row of what does not exist yet."""
    return Row(figure, "-", "-", None, bar)
