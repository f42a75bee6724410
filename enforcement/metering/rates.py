"""The price of a million tokens of each class."""

from __future__ import annotations

from typing import Final, NamedTuple

from enforcement.metering.amounts import FURTHER, TokenCounts

HOUR: Final = "cache_write_1h"
HOUR_BY_INPUT: Final = 2
"""How many times the rate of the input Anthropic charges for an hour in its cache, whatever the model."""
_SIDES: Final = {
    "input": ("input", "cached_input", "cache_write", *(one.name for one in FURTHER if one.side == "input")),
    "output": ("output", *(one.name for one in FURTHER if one.side == "output")),
}


class Rates(NamedTuple):
    """
    Micros per million tokens of each usage class.

    None: the class has no price of its own. It then costs what the dearest class of its side does, or what
    :attr:`~enforcement.metering.amounts.UsageClass.costs_as` says.
    """

    input: int
    output: int
    cached_input: int | None = None
    cache_write: int | None = None
    input_audio: int | None = None
    input_image: int | None = None
    input_video: int | None = None
    cached_audio: int | None = None
    cache_write_1h: int | None = None
    output_image: int | None = None
    output_audio: int | None = None

    def total(self, counts: TokenCounts) -> int:
        """Return what the tokens cost, in millionths of a micro."""
        total = counts.input * self.input + counts.output * self.output
        if counts.cached_input:
            total += counts.cached_input * (self.dearest("input") if self.cached_input is None else self.cached_input)
        if counts.cache_write:
            total += counts.cache_write * (self.dearest("input") if self.cache_write is None else self.cache_write)
        return total if counts.is_plain else total + self._further(counts)

    def dearest(self, side: str) -> int:
        """Return the highest rate of the ``input`` or the ``output``."""
        return max(getattr(self, name) or 0 for name in _SIDES[side])

    def approximates(self, counts: TokenCounts) -> bool:
        """Return whether tokens of a class are counted whose price is not known."""
        if counts.cached_input and self.cached_input is None:
            return True
        if counts.cache_write and self.cache_write is None:
            return True
        return not counts.is_plain and any(
            getattr(self, one.name) is None and one.costs_as is None and getattr(counts, one.name) for one in FURTHER
        )

    def _further(self, counts: TokenCounts) -> int:
        total = 0
        for one in FURTHER:
            tokens = getattr(counts, one.name)
            if tokens:
                own = getattr(self, one.name)
                if own is None and one.name == HOUR:
                    own = max(self.dearest(one.side), HOUR_BY_INPUT * self.input)
                elif own is None:
                    own = self.dearest(one.side) if one.costs_as is None else getattr(self, one.costs_as)
                total += tokens * own
        return total


RATE_NAMES: Final = Rates._fields
OPTIONAL_RATES: Final = frozenset(RATE_NAMES[2:])
