"""
Compute what tokens cost each limit of a request, by the limit's unit, its weights, and the price of the model.

The price is found once, when the request is reserved, and stays with the reservation to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from enforcement.metering.amounts import count_of, input_of
from enforcement.metering.estimated import Estimate
from enforcement.metering.prices import DENIED, Price, Prices, Quote, TokenCounts
from enforcement.model.limits import Limit
from enforcement.model.metered import DENY, FULL_WEIGHT, METERED_UNITS, MONEY, TOKEN_UNITS, cost_name
from enforcement.model.sizes import MAX_NUMBER

REQUESTS: Final = "requests"
Costs = tuple[int | None, ...]
"""The cost for each limit of a request, in their order. None for a limit that does not count the request."""


class Counts(NamedTuple):
    """Numbers by usage class, of any size."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    calls: int = 0
    other_rates: bool = False

    @property
    def is_plain(self) -> bool:
        """Always true, see :class:`~enforcement.metering.amounts.TokenCounts`."""
        return True


NO_TOKENS: Final = Counts()


class ReservationDenial(NamedTuple):
    """
    Why a request is denied before its limits are asked.

    Attributes:
        reason: ``unmetered``, or ``unpriced_model``.
        denied_by: The indices of the limits of money that have no price. Empty for ``unmetered``.
    """

    reason: str
    denied_by: tuple[int, ...] = ()


@dataclass(slots=True)
class ChargeTerms:
    """
    The terms by which a request is charged, from its reservation to its end.

    They never change. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        limits: The limits that apply to the request.
        quotes: The price for each limit of money, None for each other limit.
        metered: Whether a meter can read the request. Otherwise only requests are counted.
        names: The name under which a limiter knows the cost of each limit, if the caller has it. Empty: it is computed.
    """

    limits: tuple[Limit, ...]
    quotes: tuple[Quote | None, ...]
    metered: bool = True
    names: tuple[str, ...] = ()

    def costs(self, counts: TokenCounts) -> Costs:
        """Return what these tokens cost each limit, rounded up once for each. At most 2**53 - 1."""
        if not self.metered:
            return tuple([1 if limit.unit == REQUESTS else None for limit in self.limits])
        bound = counts if isinstance(counts, Estimate) and counts.bound else None
        found: list[int | None] = []
        for limit, quote in zip(self.limits, self.quotes, strict=True):
            if limit.unit == REQUESTS:
                found.append(1)
            elif limit.unit in TOKEN_UNITS:
                found.append(weighed(limit, counts) if bound is None else bound.most_weighed(limit))
            else:
                found.append(micros_of(quote.price, counts) if quote and quote.price else None)
        return tuple(found)

    def unmetered(self) -> tuple[int, ...]:
        """Return the indices of the limits that get no cost."""
        return tuple(i for i, cost in enumerate(self.costs(NO_TOKENS)) if cost is None)

    def named(self, costs: Costs) -> dict[str, int]:
        """
        Return costs by the names that a limiter knows.

        Args:
            costs: The costs of these limits, from here or of a settlement.
        """
        names = self.names or [cost_name(limit) for limit in self.limits]
        return {name: cost for name, cost in zip(names, costs, strict=True) if cost is not None}

    def approximates(self, counts: TokenCounts) -> bool:
        """Return whether a class of these tokens has no price of its own for a limit of money."""
        priced = [quote.price for quote in self.quotes if quote and quote.price]
        return bool(priced) and any(price.approximates(counts) for price in priced)

    def with_prices(self, other: Callable[[Price], Price]) -> ChargeTerms:
        """Return these terms with another price for each limit that has one."""
        quotes = tuple([q._replace(price=other(q.price)) if q and q.price else q for q in self.quotes])
        return replace(self, quotes=quotes)


def micros_of(price: Price, counts: TokenCounts) -> int:
    """Return what tokens cost by a price, in micros, or the most that they may cost if they are those of a bound."""
    if isinstance(counts, Estimate):
        return counts.most_micros(price) if counts.bound else counts.usual_micros(price)
    return price.micros(counts)


def answered_by(price: Price, model: str, counts: TokenCounts) -> Price:
    """Return the price of the model that an answer names if these tokens cost more by it, else *price*."""
    other = price.other(model)
    return other if other is not None and micros_of(other, counts) > micros_of(price, counts) else price


def terms_of(
    limits: Sequence[Limit], prices: Prices, model: str, at_us: int, names: tuple[str, ...] = ()
) -> ChargeTerms | ReservationDenial:
    """
    Return what a request is charged by, or why it is denied.

    Args:
        limits: The limits that apply to the request.
        model: The model that the request asks for.
        at_us: The instant of the reservation, in microseconds since the epoch.
        names: See :class:`ChargeTerms`.
    Returns:
        A refusal if a limit of money has no price for the model. A shadow limit never denies.
    """
    quotes = [prices.quote(model, at_us, limit.unpriced) if limit.unit == MONEY else None for limit in limits]
    if DENIED in quotes:
        rows = enumerate(zip(limits, quotes, strict=True))
        denied = tuple([i for i, (limit, quote) in rows if quote is DENIED and not limit.shadow])
        if denied:
            return ReservationDenial("unpriced_model", denied)
    return ChargeTerms(tuple(limits), tuple(quotes), names=names)


def unmetered_terms(limits: Sequence[Limit]) -> ChargeTerms | ReservationDenial:
    """
    Return what a request that no meter can read is charged by, or why it is denied.

    Returns:
        A refusal if a limit of tokens or money asks for a meter. Otherwise terms that count requests and slots only.
    """
    if any(limit.unit in METERED_UNITS and limit.unmetered == DENY and not limit.shadow for limit in limits):
        return ReservationDenial("unmetered")
    return ChargeTerms(tuple(limits), (None,) * len(limits), metered=False)


def settled_costs(
    limits: Sequence[Limit], prices: Prices, model: str, at_us: int, counts: TokenCounts
) -> dict[str, int]:
    """
    Return what tokens cost the limits of tokens and money, by the names that a limiter knows.

    Args:
        limits: The limits that apply to the request. What others count is left out, and so is money without a price.
        model: The model by whose price money is counted.
        at_us: The instant of the reservation, in microseconds since the epoch.
    """
    metered = tuple(limit for limit in limits if limit.unit in METERED_UNITS)
    quotes = tuple(prices.quote(model, at_us, it.unpriced) if it.unit == MONEY else None for it in metered)
    terms = ChargeTerms(metered, quotes)
    return terms.named(terms.costs(counts))


def weighed(limit: Limit, counts: TokenCounts) -> int:
    """Return how many tokens a limit of tokens counts, by its weights, rounded up once. At most 2**53 - 1."""
    weights, classes, total = limit.weights, TOKEN_UNITS[limit.unit], 0
    if not weights:
        is_plain = counts.is_plain
        if "input" in classes:
            total += counts.input + counts.cached_input + counts.cache_write if is_plain else input_of(counts)
        if "output" in classes:
            total += counts.output if is_plain else count_of(counts, "output")
        return min(total, MAX_NUMBER)
    for name in classes:
        total += count_of(counts, name) * weights.get(name, FULL_WEIGHT)
    return min(-(-total // FULL_WEIGHT), MAX_NUMBER)
