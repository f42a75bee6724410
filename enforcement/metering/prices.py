"""
Find the price of a model, and compute what tokens cost.

Prices are integers, micros per million tokens. The cost of a request is summed exactly and rounded up once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from enforcement.model.metered import CHARGE_AS, COUNT_ONLY, FrozenMapping
from enforcement.model.sizes import MAX_NUMBER, MAX_PATTERN_LENGTH

PER_TOKENS: Final = 1_000_000
MAX_CACHED: Final = 4_096
"""Models whose price is remembered. Clients choose the names, so there may be any number of them."""

NO_FACTORS: Final[FrozenMapping[int]] = FrozenMapping()

PUBLISHED: Final[Mapping[str, int]] = {"service_tier=priority": 2_500}
"""The highest multiplier, per mille, that providers publish for any of their models, of those that are widely used."""

_ALWAYS: Final = -(2**63)
_FOREVER: Final = 2**63


class TokenCounts(Protocol):
    """Numbers by usage class, as of a :class:`~enforcement.metering.usage.Usage` or an estimate."""

    @property
    def input(self) -> int: ...
    @property
    def cached_input(self) -> int: ...
    @property
    def cache_write(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def other_rates(self) -> bool: ...


class Rates(NamedTuple):
    """
    Micros per million tokens of each usage class.

    Attributes:
        cached_input: None if the class has no price of its own. It then costs what the dearest class of the input does.
        cache_write: As *cached_input*.
    """

    input: int
    output: int
    cached_input: int | None = None
    cache_write: int | None = None

    def total(self, counts: TokenCounts) -> int:
        """Return what the tokens cost, in millionths of a micro."""
        total = counts.input * self.input + counts.output * self.output
        if counts.cached_input:
            total += counts.cached_input * (self._dearest_input if self.cached_input is None else self.cached_input)
        if counts.cache_write:
            total += counts.cache_write * (self._dearest_input if self.cache_write is None else self.cache_write)
        return total

    @property
    def _dearest_input(self) -> int:
        return max(self.input, self.cached_input or 0, self.cache_write or 0)

    def approximates(self, counts: TokenCounts) -> bool:
        """Return whether tokens of a class are counted that has no price of its own."""
        if counts.cached_input and self.cached_input is None:
            return True
        return counts.cache_write > 0 and self.cache_write is None


@dataclass(frozen=True, slots=True)
class Price:
    """
    What the tokens of some models cost within a time.

    Attributes:
        pattern: The names of the models. ``*`` stands for any characters, also none, and all others for themselves.
        rates: The rates of a request whose input is above no tier.
        from_us: When it begins to hold, in microseconds since the epoch. None: it always did.
        until_us: When it no longer holds. None: it does not end.
        tiers: Pairs of a number of input tokens and rates, the numbers rising. The rates of the highest number that
            the input is above hold for the whole request.
        calls: Micros for a million calls of the provider's tools, whatever the input. None: it is not known, and such
            calls cost nothing here.
        part_tokens: The most tokens of one part that is not text, by its kind, as the provider says. Only a bound
            needs them.
        added_tokens: The most tokens that the provider adds to a request by itself. Only a bound counts them.
    """

    pattern: str
    rates: Rates
    from_us: int | None = None
    until_us: int | None = None
    tiers: tuple[tuple[int, Rates], ...] = ()
    calls: int | None = None
    part_tokens: FrozenMapping[int] = NO_FACTORS
    added_tokens: int = 0

    def rates_for(self, counts: TokenCounts) -> Rates:
        """Return the rates for a request with these tokens."""
        found = self.rates
        if self.tiers:
            whole = counts.input + counts.cached_input + counts.cache_write
            for above, rates in self.tiers:
                if whole <= above:
                    break
                found = rates
        return found

    def micros(self, counts: TokenCounts) -> int:
        """Return what the tokens and calls cost, in micros, rounded up once. At most 2**53 - 1."""
        total = self.rates_for(counts).total(counts)
        if counts.calls:
            total += counts.calls * (self.calls or 0)
        return min(-(-total // PER_TOKENS), MAX_NUMBER)

    def approximates(self, counts: TokenCounts) -> bool:
        """
        Return whether the price may differ from that of the provider, as a class has no price of its own here. Its
        tokens are then charged as the dearest of the input, and its calls not at all.
        """
        if counts.other_rates or (counts.calls and self.calls is None):
            return True
        return self.rates_for(counts).approximates(counts)

    def multiplier_for(self, modifier: str) -> int | None:
        """
        Return how many times the rates are charged for what a request asks for, such as ``service_tier=priority``, per
        mille. None if neither the price nor its provider's own list says it.
        """
        own: Mapping[str, int] = getattr(self, "multipliers", NO_FACTORS)
        return own[modifier] if modifier in own else PUBLISHED.get(modifier)

    def times(self, factor: int) -> Price:
        """Return this price with all its rates multiplied, per mille, each rounded up."""
        return _times(self, factor)

    def matches(self, model: str) -> bool:
        """Return whether the pattern covers the whole name of a model."""
        first, *rest = self.pattern.split("*")
        if not rest:
            return model == first
        last = rest.pop()
        if len(model) < len(first) + len(last) or not (model.startswith(first) and model.endswith(last)):
            return False
        at, end = len(first), len(model) - len(last)
        for part in rest:
            # The leftmost place leaves the most for the parts that follow.
            at = model.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    def holds_at(self, now_us: int) -> bool:
        """Return whether the price holds at an instant, in microseconds since the epoch."""
        return (self.from_us is None or self.from_us <= now_us) and (self.until_us is None or now_us < self.until_us)


@lru_cache(1_024)
def _times(price: Price, factor: int) -> Price:
    def rate(value: int | None) -> int | None:
        return value if value is None else -(-value * factor // 1_000)

    def rates(found: Rates) -> Rates:
        return Rates(*map(rate, found))  # type: ignore[arg-type]

    tiers = tuple((above, rates(found)) for above, found in price.tiers)
    return replace(price, rates=rates(price.rates), tiers=tiers, calls=rate(price.calls))


class Quote(NamedTuple):
    """
    What a limit of money does with a request for a model.

    Attributes:
        word: ``priced``, ``charged_as``, ``counted`` or ``denied``.
        price: The price that the request is charged by. None if it is ``counted`` or ``denied``.
    """

    word: str
    price: Price | None

    @property
    def by(self) -> str | None:
        """The pattern of the price, or None if there is no price."""
        return self.price.pattern if self.price else None


DENIED: Final = Quote("denied", None)
COUNTED: Final = Quote("counted", None)
FREE: Final = Quote("priced", Price("*", Rates(0, 0)))
"""The price of a request that costs nothing, whatever its model."""


class _Span(NamedTuple):
    """The price of a model, and from when until when it is that one."""

    from_us: int
    until_us: int
    price: Price | None


@dataclass(frozen=True, slots=True)
class Prices:
    """
    A published list of prices.

    Attributes:
        revision: The number of the publication.
        overrides: The operator's prices, which are taken before all others.
        prices: The other prices.
        currency: The name of the currency, such as ``USD``. Empty if the document has none.
        factors: What was learned of the tokens of models, per mille, by the whole name of the model. See
            :func:`~enforcement.metering.estimate.estimate_request`.
    """

    revision: int
    overrides: tuple[Price, ...] = ()
    prices: tuple[Price, ...] = ()
    currency: str = ""
    factors: FrozenMapping[int] = NO_FACTORS
    _lists: tuple[_Index, ...] = field(init=False, repr=False, compare=False)
    _spans: dict[str, _Span] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_lists", (_Index(self.overrides), _Index(self.prices)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.revision, self.overrides, self.prices, self.currency, self.factors)

    def find(self, model: str, at_us: int) -> Price | None:
        """
        Return the price of a model at an instant, in microseconds since the epoch, or None if it has no price.

        Overrides come first, then the pattern with the most characters that are not a star, then the one with fewer
        stars, then the first in the order of their characters, then the latest beginning.
        """
        span = self._spans.get(model)
        if span is None or not span.from_us <= at_us < span.until_us:
            span = self._span(model, at_us)
            if len(model) <= MAX_PATTERN_LENGTH:
                if len(self._spans) >= MAX_CACHED:
                    self._spans.clear()
                self._spans[model] = span
        return span.price

    def quote(self, model: str, at_us: int, unpriced: str | Mapping[str, str]) -> Quote:
        """
        Return the price by which a limit charges a request, or what it does without one.

        Args:
            model: The model that the request asks for.
            at_us: The instant of the reservation, in microseconds since the epoch.
            unpriced: The rule of the limit for models without a price.
        """
        price = self.find(model, at_us)
        if price is not None:
            return Quote("priced", price)
        if isinstance(unpriced, Mapping):
            price = self.find(unpriced[CHARGE_AS], at_us)
            return DENIED if price is None else Quote("charged_as", price)
        return COUNTED if unpriced == COUNT_ONLY else DENIED

    def _span(self, model: str, at_us: int) -> _Span:
        candidates = [price for index in self._lists for price in index.matching(model)]
        found = next((price for price in candidates if price.holds_at(at_us)), None)
        # Which price holds can only change where a price begins or ends.
        edges = {edge for price in candidates for edge in (price.from_us, price.until_us) if edge is not None}
        from_us = max((edge for edge in edges if edge <= at_us), default=_ALWAYS)
        return _Span(from_us, min((edge for edge in edges if edge > at_us), default=_FOREVER), found)


class _Index:
    """Prices by the characters of their pattern before its first star, so that few have to be compared with a name."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._exact: dict[str, list[Price]] = {}
        self._open: dict[str, list[Price]] = {}
        for price in prices:
            head, star, _ = price.pattern.partition("*")
            (self._open if star else self._exact).setdefault(head, []).append(price)
        self._lengths = sorted({len(head) for head in self._open})

    def matching(self, model: str) -> list[Price]:
        """Return the prices whose pattern covers the name of a model, whenever they hold, the first choice first."""
        found = list(self._exact.get(model, ()))
        for length in self._lengths:
            if length > len(model):
                break
            found += [price for price in self._open.get(model[:length], ()) if price.matches(model)]
        return sorted(found, key=_rank)


def _rank(price: Price) -> tuple[int, int, str, int]:
    stars = price.pattern.count("*")
    return stars - len(price.pattern), stars, price.pattern, -(_ALWAYS if price.from_us is None else price.from_us)


NO_PRICES: Final = Prices(0)
"""The prices of an instance that has received no document. No model has a price."""
