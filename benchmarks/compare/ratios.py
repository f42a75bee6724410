"""What paired measurements say: a ratio, the interval in which it lies, and a verdict."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

WORSE_ABOVE = 1.03
BETTER_BELOW = 0.97
RESAMPLES = 2_000
CONFIDENCE = 0.95
SEED = 1


@dataclass(frozen=True, slots=True)
class Interval:
    """
    A ratio NEW/OLD and the bounds between which it lies.

    Attributes:
        ratio: The median of the paired ratios.
        low, high: The bounds of its bootstrap interval.
    """

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return ``worse`` or ``better`` if the whole interval is beyond the bound, otherwise an empty string."""
        if self.low > WORSE_ABOVE:
            return "worse"
        return "better" if self.high < BETTER_BELOW else ""


@dataclass(frozen=True, slots=True)
class Row:
    """
    One line of the table.

    Attributes:
        name: The shape, or what was counted.
        unit: Of *old* and *new*, which are medians.
        exact: Whether it was counted, not timed. Its interval has no width.
    """

    name: str
    unit: str
    old: float
    new: float
    interval: Interval
    exact: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the row for the JSON file."""
        it = self.interval
        numbers = {"old": self.old, "new": self.new, "ratio": it.ratio, "low": it.low, "high": it.high}
        rounded = {name: round(number, 4) for name, number in numbers.items()}
        return {"name": self.name, "unit": self.unit, **rounded, "verdict": it.verdict}


def paired(name: str, unit: str, old: Sequence[float], new: Sequence[float], *, together: int = 1) -> Row:
    """Return the row of measurements that were taken in pairs, in their order; *together* as in :func:`bootstrap`."""
    ratios = [after / before for before, after in zip(old, new, strict=True)]
    return Row(name, unit, statistics.median(old), statistics.median(new), bootstrap(ratios, together=together))


def counted(name: str, unit: str, old: float, new: float) -> Row:
    """Return the row of what is counted exactly."""
    return Row(name, unit, old, new, Interval(new / old, new / old, new / old), exact=True)


def bootstrap(ratios: Sequence[float], *, together: int = 1) -> Interval:
    """
    Return the median of some ratios with its bootstrap interval.

    As many ratios are drawn with replacement as there are, again and again. The interval holds the middle 95 % of
    the medians of these draws. The draws are seeded: the same ratios give the same interval.

    Args:
        together: So many neighbours are drawn together, because they have a cause of variation in common.
    """
    if len(ratios) <= together:
        together = 1  # one group alone would look exact
    groups = [ratios[i : i + together] for i in range(0, len(ratios), together)]
    chance = random.Random(SEED)
    draws = (chance.choices(groups, k=len(groups)) for _ in range(RESAMPLES))
    medians = sorted(statistics.median(chain.from_iterable(draw)) for draw in draws)
    cut = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(statistics.median(ratios), medians[cut], medians[-cut - 1])
