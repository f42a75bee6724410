"""The estimate of a request before it is answered, and the most that it may cost if the estimate is a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from enforcement.metering.prices import PER_TOKENS, Price, Rates
from enforcement.metering.rates import HOUR, HOUR_BY_INPUT
from enforcement.model.limits import Limit
from enforcement.model.metered import FULL_WEIGHT, INPUT_CLASSES, TOKEN_UNITS
from enforcement.model.sizes import MAX_NUMBER

BYTES_PER_TOKEN: Final = 4
PER_MILLE: Final = 1_000
FACTOR: Final = PER_MILLE
"""The factor of a model of which nothing was learned, per mille."""


class PricedBy(NamedTuple):
    """
    The classes and modifiers on which the price of a request depends, besides its tokens.

    Attributes:
        inputs: Further classes that its input may have, such as ``cache_write_1h``.
        outputs: The same of its output, such as ``output_image``.
        modifiers: What all rates are multiplied for, such as ``service_tier=priority``.
        needed: Those of the classes whose rate must be known.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    modifiers: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def unknown_to(self, price: Price) -> str:
        """Return the first class or modifier for which a price has no rate, or an empty string."""
        if not self.modifiers and not self.needed:
            return ""
        rates = [
            *map(price.multiplier_for, self.modifiers),
            *(getattr(price.rates, name) for name in self.needed),
        ]
        return next(
            (name for name, rate in zip((*self.modifiers, *self.needed), rates, strict=True) if rate is None), ""
        )


PLAIN: Final = PricedBy()


@dataclass(slots=True)
class Estimate:
    """
    The tokens of a request before it is answered.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        input: Tokens of its text and its other parts.
        cap: Output tokens that each choice of the answer may have. It must be sent to the provider.
        n: Choices that the answer has.
        factor: What was learned of the model's tokens, per mille. Text has so many more tokens than usual.
        bound: Whether no number here can be exceeded by a provider that honours *cap*.
        priced_by: What the price of a bound depends on, and further classes of the output of a typical estimate.
        classes: Tokens of *input* of a typical estimate by further classes, such as ``input_audio``.
        added: Tokens of *input* that a bound has for those that the provider adds by itself.
        pattern: The pattern of the price for which they are known, or the model without a price.
    """

    input: int
    cap: int
    n: int = 1
    factor: int = FACTOR
    bound: bool = False
    priced_by: PricedBy = PLAIN
    classes: tuple[tuple[str, int], ...] = ()
    added: int = 0
    pattern: str = ""

    cached_input: ClassVar[int] = 0
    cache_write: ClassVar[int] = 0
    calls: ClassVar[int] = 0
    other_rates: ClassVar[bool] = False
    is_plain: ClassVar[bool] = True

    @property
    def output(self) -> int:
        """The most output tokens that the answer may have."""
        return self.cap * self.n

    def seen(self, text_bytes: int) -> int:
        """
        Return how many output tokens a part of an answer has, by the length of its text in bytes.

        A token has at least one byte, so a bound takes one for each byte, but not more than the cap allows.
        """
        return min(text_bytes, self.output) if self.bound else text_tokens(text_bytes, self.factor)

    def most_micros(self, price: Price) -> int:
        """
        Return the most that a bound may cost, in micros, rounded up once. At most 2**53 - 1.

        All of the input may be read from a cache or written to it, and has the dearest of these rates. So has the
        output, and that of a tier of fewer tokens holds if it is dearer.
        """
        most = self._total(price.rates)
        for above, rates in price.tiers:
            if self.input > above:
                most = max(most, self._total(rates))
        for name in self.priced_by.modifiers:
            most = -(-most * max(PER_MILLE, price.multiplier_for(name) or 0) // PER_MILLE)
        return min(-(-most // PER_TOKENS), MAX_NUMBER)

    def usual_micros(self, price: Price) -> int:
        """
        Return what a typical estimate costs, in micros, rounded up once. At most 2**53 - 1.

        Each class that the price has a rate for has that rate. Of several classes of the output, it has the dearest.
        """
        if not self.classes and self.priced_by is PLAIN:
            return price.micros(self)
        rates = price.rates_for(self)
        total = rates.total(self)
        for name, tokens in self.classes:
            own = getattr(rates, name)
            total += 0 if own is None else tokens * (own - rates.input)
        dearest = max([rates.output, *(getattr(rates, name) or 0 for name in self.priced_by.outputs)])
        return min(-(-(total + self.output * (dearest - rates.output)) // PER_TOKENS), MAX_NUMBER)

    def most_weighed(self, limit: Limit) -> int:
        """Return the most that a bound may cost a limit of tokens, by its weights. At most 2**53 - 1."""
        weights, classes = limit.weights, TOKEN_UNITS[limit.unit]
        if not weights:
            return min(self.input * ("input" in classes) + self.output * ("output" in classes), MAX_NUMBER)
        total = self.input * max([weights.get(name, FULL_WEIGHT) for name in INPUT_CLASSES if name in classes] or [0])
        if "output" in classes:
            total += self.output * weights.get("output", FULL_WEIGHT)
        return min(-(-total // FULL_WEIGHT), MAX_NUMBER)

    def _total(self, rates: Rates) -> int:
        priced_by, output = self.priced_by, rates.output
        dearest = max(rates.input, rates.cached_input or 0, rates.cache_write or 0)
        for name in priced_by.inputs:
            own = getattr(rates, name)
            dearest = max(dearest, HOUR_BY_INPUT * rates.input if own is None and name == HOUR else own or 0)
        for name in priced_by.outputs:
            output = max(output, getattr(rates, name) or 0)
        return self.input * dearest + self.cap * self.n * output


def text_tokens(text_bytes: int, factor: int = FACTOR) -> int:
    """Return how many tokens a text of this length usually has, rounded up once. *factor* is per mille."""
    return -(-text_bytes * factor // (BYTES_PER_TOKEN * PER_MILLE))
