"""
Find the price of a model, and compute what tokens cost.

Prices are integers, micros per million tokens. The cost of a request is summed exactly and rounded up once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Final, NamedTuple

from enforcement.metering.amounts import DetailedUsage, UsageStep, input_of
from enforcement.metering.amounts import TokenCounts as TokenCounts
from enforcement.metering.rates import Rates as Rates
from enforcement.metering.typical import NONE_LEARNED, Learned
from enforcement.model.metered import CHARGE_AS, COUNT_ONLY, FrozenMapping
from enforcement.model.sizes import MAX_NUMBER, MAX_PATTERN_LENGTH

PER_TOKENS: Final = 1_000_000
MAX_CACHED: Final = 4_096
"""Models whose price is remembered. Clients choose the names, so there may be any number of them."""

NO_FACTORS: Final[FrozenMapping[int]] = FrozenMapping()
PER_MILLE: Final = 1_000
NO_MODELS: Final[Mapping[str, str]] = FrozenMapping()

PUBLISHED: Final[Mapping[str, int]] = {"service_tier=priority": 2_500}
"""The highest multiplier, per mille, that providers publish for any of their models, of those that are widely used."""
_SAME: Final[Mapping[str, str]] = {"traffic_type=ON_DEMAND_PRIORITY": "service_tier=priority"}

_ALWAYS: Final = -(2**63)
_FOREVER: Final = 2**63


@dataclass(frozen=True, slots=True)
class Price:
    """
    The rates for the tokens of some models within a time.

    Attributes:
        pattern: The names of the models. ``*`` stands for any characters, also none, and all others for themselves.
        rates: The rates of a request whose input is above no tier.
        from_us: When it begins to hold, in microseconds since the epoch. None: it always did.
        until_us: When it no longer holds. None: it does not end.
        tiers: Pairs of a number of input tokens and rates, the numbers rising. The rates of the highest number that
            the input is above hold for the whole request.
        calls: Micros for a million calls of the provider's tools, whatever the input. None: it is not known, and such
            calls cost nothing here.
        file_searches: The same for searches of files. None: they cost what other calls do.
        containers: The same for containers. None: as *calls*.
        multipliers: How many times all rates are charged, per mille, by what the answer says, such as
            ``service_tier=priority``.
        part_tokens: The most tokens of one part that is not text, by its kind, as the provider says. Only a bound
            needs them.
        added_tokens: The most tokens that the provider adds to a request by itself. Only a bound counts them.
        unbounded: Whether the provider has reported that it adds more tokens than can be published.
        default_cap: Output tokens of a request that names no cap, under policies that name none. 0: the usual number.
        source: The list that the price was found in, and for what. None: it was not found in one.
        text: What :func:`~enforcement.metering.price_documents.price_text` has returned. Empty: it was not asked.
    """

    pattern: str
    rates: Rates
    from_us: int | None = None
    until_us: int | None = None
    tiers: tuple[tuple[int, Rates], ...] = ()
    calls: int | None = None
    file_searches: int | None = None
    containers: int | None = None
    multipliers: FrozenMapping[int] = NO_FACTORS
    part_tokens: FrozenMapping[int] = NO_FACTORS
    added_tokens: int = 0
    unbounded: bool = False
    default_cap: int = 0
    source: PriceSource | None = field(default=None, repr=False, compare=False)
    text: str = field(init=False, default="", repr=False, compare=False)

    def rates_for(self, counts: TokenCounts) -> Rates:
        """Return the rates for a request with these tokens."""
        result = self.rates
        if self.tiers:
            whole = input_of(counts)
            for above, rates in self.tiers:
                if whole <= above:
                    break
                result = rates
        return result

    def micros(self, counts: TokenCounts) -> int:
        """Return what the tokens and calls cost, in micros, rounded up once. At most 2**53 - 1."""
        if isinstance(counts, DetailedUsage):
            return self._micros_by_parts(counts)
        rates = self.rates_for(counts) if self.tiers else self.rates
        total = rates.total(counts)
        if counts.calls:
            total += counts.calls * (self.calls or 0)
        return min(-(-total // PER_TOKENS), MAX_NUMBER)

    def approximates(self, counts: TokenCounts) -> bool:
        """
        Return whether the price may differ from that of the provider, as a rate or a fee is not known here, or as the
        provider itself says another cost. Tokens are then charged by the dearest rate of their side that is known, and
        calls not at all.
        """
        if isinstance(counts, DetailedUsage):
            return not self._takes_cost_of(counts) and self._approximates_parts(counts)
        if counts.other_rates or (counts.calls and self.calls is None):
            return True
        if counts.is_plain and not counts.cached_input and not counts.cache_write:
            return False  # as most answers have input and output only
        return self.rates_for(counts).approximates(counts)

    def multiplier_for(self, modifier: str) -> int | None:
        """
        Return how many times the rates are charged for what a request asks for, such as ``service_tier=priority``, per
        mille. None if neither the price nor its provider's own list says it.
        """
        return self.multipliers[modifier] if modifier in self.multipliers else PUBLISHED.get(modifier)

    def _named(self, modifiers: Iterable[str]) -> set[str]:
        """Return modifiers, each that has no multiplier by the name of another one for the same."""
        return {name if name in self.multipliers else _SAME.get(name, name) for name in modifiers}

    def times(self, factor: int) -> Price:
        """Return this price with all its rates multiplied, per mille, each rounded up."""

        def times(value: int | None) -> int | None:
            return None if value is None else -(-value * factor // PER_MILLE)

        def rates(found: Rates) -> Rates:
            return Rates(*map(times, found))  # type: ignore[arg-type]

        tiers = tuple((above, rates(found)) for above, found in self.tiers)
        fees = {name: times(getattr(self, name)) for name in ("calls", "file_searches", "containers")}
        return replace(self, rates=rates(self.rates), tiers=tiers, **fees)  # type: ignore[arg-type]

    def multiplier(self, modifier: str) -> int:
        """
        Return how many times the rates are charged for a modifier such as ``service_tier=priority``, per mille.

        Returns:
            That of the price. For one that it does not have, the highest that it has of the same name or that is
            published, at least 1000.
        """
        if modifier in self.multipliers:
            return self.multipliers[modifier]
        name = modifier.partition("=")[0] + "="
        return max(
            [
                PUBLISHED.get(modifier, PER_MILLE),
                *[value for key, value in self.multipliers.items() if key.startswith(name)],
            ]
        )

    def other(self, model: str | None) -> Price | None:
        """
        Return the price of another model in the same list, or None if there is none.

        Another pattern that also covers the model that this price was found for, such as ``*``, says nothing of the
        other one.
        """
        if self.source is None or model is None:
            return None
        price = self.source.prices.find(model, self.source.at_us)
        if price is None or (price.pattern != self.pattern and price.matches(self.source.model)):
            return None
        return price

    def with_tools(self, tools: Mapping[str, str]) -> Price:
        """Return the price for a request that names the models of the provider's tools, by tool."""
        return self if self.source is None else replace(self, source=replace(self.source, tools=tools))

    def at_upstream(self, host: str) -> Price:
        """
        Return the price for a request to an upstream. If the list names its host, the cost that it reports is charged,
        but not in place of a price that an operator has set.
        """
        source = self.source
        if source is None or source.is_own or host not in source.prices.reported_costs:
            return self
        return replace(self, source=replace(source, takes_cost=True))

    def _takes_cost_of(self, counts: DetailedUsage) -> bool:
        return counts.cost is not None and self.source is not None and self.source.takes_cost

    def _micros_by_parts(self, counts: DetailedUsage) -> int:
        if counts.cost is not None and self._takes_cost_of(counts):
            return min(counts.cost, MAX_NUMBER)
        modifiers = self._named(counts.modifiers)
        scale: int = PER_MILLE ** len(modifiers)
        total = scale * self._fees(counts)
        for price, part in self._parts(counts):
            total += price.rates_for(part).total(part) * prod(map(price.multiplier, modifiers))
        return min(-(-total // (PER_TOKENS * scale)), MAX_NUMBER)

    def _fees(self, counts: DetailedUsage) -> int:
        calls = self.calls or 0
        of_files = calls if self.file_searches is None else self.file_searches
        fees = max(0, counts.calls - counts.file_searches) * calls + counts.file_searches * of_files
        return fees + counts.containers * (self.containers or 0)

    def _parts(self, counts: DetailedUsage) -> Iterator[tuple[Price, TokenCounts]]:
        """Yield the parts of a usage with the price of each. That of an unknown model is this one."""
        yield self, counts.beside_steps()
        for step in counts.steps:
            yield self.other(self._model_of(step)) or self, step.usage

    def _model_of(self, step: UsageStep) -> str | None:
        tools = NO_MODELS if self.source is None else self.source.tools
        return step.model or tools.get(step.tool)

    def _approximates_parts(self, counts: DetailedUsage) -> bool:
        unknown_fee = (
            (counts.calls > counts.file_searches and self.calls is None)
            or (counts.file_searches and self.file_searches is None and self.calls is None)
            or (counts.containers and self.containers is None)
        )
        if counts.other_rates or unknown_fee or not self._named(counts.modifiers) <= self.multipliers.keys():
            return True
        if any((step.model or step.tool) and self.other(self._model_of(step)) is None for step in counts.steps):
            return True
        if any(price.rates_for(part).approximates(part) for price, part in self._parts(counts)):
            return True
        # A micro more or less is rounding.
        return counts.cost is not None and abs(self._micros_by_parts(counts) - counts.cost) > 1

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


@dataclass(frozen=True, slots=True)
class PriceSource:
    """
    Where a price was found, and for what.

    Attributes:
        prices: The list.
        model: The model that it was looked up for.
        at_us: The instant that it was looked up for.
        is_own: Whether an operator has set the price.
        takes_cost: Whether the cost that the provider reports is charged in its place.
        tools: The models of the provider's tools that a request names, by tool.
    """

    prices: Prices
    model: str
    at_us: int
    is_own: bool = False
    takes_cost: bool = False
    tools: Mapping[str, str] = NO_MODELS


class Quote(NamedTuple):
    """
    The way in which a limit of money treats a request for a model.

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
        learned: What was learned of the input of requests.
        reported_costs: Hosts of upstreams whose own costs are charged. They report them in this currency.
    """

    revision: int
    overrides: tuple[Price, ...] = ()
    prices: tuple[Price, ...] = ()
    currency: str = ""
    learned: Learned = NONE_LEARNED
    reported_costs: frozenset[str] = frozenset()
    _lists: tuple[_Index, ...] = field(init=False, repr=False, compare=False)
    _edges: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _spans: dict[str, _Span] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        dates = {edge for price in (*self.overrides, *self.prices) for edge in (price.from_us, price.until_us)}
        object.__setattr__(self, "_lists", (_Index(self.overrides), _Index(self.prices)))
        object.__setattr__(self, "_edges", tuple(sorted(edge for edge in dates if edge is not None)))

    def __reduce__(self) -> tuple[object, ...]:
        values = self.revision, self.overrides, self.prices, self.currency, self.learned, self.reported_costs
        return type(self), values

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
        for is_own, index in zip((True, False), self._lists, strict=True):
            found = next((price for price in index.matching(model) if price.holds_at(at_us)), None)
            if found is not None:
                found = replace(found, source=PriceSource(self, model, at_us, is_own))
                break
        # Which price holds can only change where one begins or ends, also that of another model.
        after = bisect_right(self._edges, at_us)
        until_us = self._edges[after] if after < len(self._edges) else _FOREVER
        return _Span(self._edges[after - 1] if after else _ALWAYS, until_us, found)


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
