"""Decide what a metered request is charged before it is sent to the provider, or why it is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from json.encoder import encode_basestring_ascii
from typing import Final

from enforcement.metering.bound import KEPT_CONTEXT, NO_FIELDS, FieldRates, demands_of, parts_bound
from enforcement.metering.charges import (
    NO_TOKENS,
    ChargeTerms,
    Costs,
    ReservationDenial,
    answered_by,
    terms_of,
    unmetered_terms,
)
from enforcement.metering.estimate import (
    Estimate,
    NoBound,
    clamp,
    estimate_request,
)
from enforcement.metering.estimated import FACTOR, PricedBy
from enforcement.metering.price_documents import MAX_ADDED_TOKENS, price_text
from enforcement.metering.prices import FREE, NO_FACTORS, PER_MILLE, Price, Prices, Quote
from enforcement.metering.request import MCP, MeteredRequest, Parsed, Unmetered
from enforcement.metering.typical import NONE_LEARNED, Learned, typical_tokens
from enforcement.model.checks import shown
from enforcement.model.limits import Limit
from enforcement.model.metered import METERED_UNITS, MONEY, USUAL_OUTPUT_CAP, Metering, cost_name

WHY_UNMETERED: Mapping[str, str] = {
    "method": "only a POST to a provider has a cost that can be read",
    "encoding": "its body is compressed",
    "too_large": "its body is too long to be read",
    "format": "its path belongs to no known API of a provider",
    "lookalike": "another program may find more in its path or body than a meter does",
    "duplicate_key": "a key occurs twice in an object of its body, or in another case or spelling",
    "invalid_json": "its body is not JSON",
    "not_an_object": "its body is not a JSON object",
    "bad_query": "its query asks for an answer whose usage cannot be read",
    "charset": "its body is not in UTF-8",
    "no_model": "it names no model",
    "bad_stream": "stream or stream_options is not what the API expects",
    "bad_cap": "its bound on output tokens is not an integer in range",
    "bad_n": "its number of answers is not an integer in range",
    "batch": "it is a batch of calls, or names several models",
    "override": "another method can be read in it, for which further limits apply to it",
    "path": "its path can be read in another way, in which further limits apply to it",
    "websocket": "what passes through a WebSocket connection cannot be read",
}
"""For people: why a request cannot be metered, by the reason of :class:`~enforcement.metering.request.Unmetered`."""

DOORS: Mapping[str, str] = {
    "batches": "a batch is answered and charged later",
    "realtime": "what a realtime session costs is spent on a connection of its own, past the meter, also by a client "
    "secret or a call",
    "runs": "a run goes on after its answer, and reads a thread that the provider keeps",
    "rerank": "no meter reads reranking",
    "writer": "no meter reads the chat of Writer",
    "watsonx": "no meter reads the API of watsonx",
    "ollama": "no meter reads the API of Ollama; use its path /v1/chat/completions",
    "complete": "no meter reads the text completions of Anthropic; use its path /v1/messages",
}
"""For people: why no meter reads what a path offers."""

WITH_PARTS: Final = " with parts that are not text"
"""
The end of the pattern for tokens that are added only to requests with parts that are not text, as these may be the
cause.
"""


@dataclass(frozen=True, slots=True)
class RefusedOpening:
    """
    Why a request is denied before its limits are asked.

    Attributes:
        reason: ``unmetered`` or ``unpriced_model``.
        detail: A sentence for the client.
        field: The field of the request that nobody has priced or allowed. Empty if another reason holds.
    """

    reason: str
    detail: str
    field: str = ""


@dataclass(slots=True)
class Opening:
    """
    The charge of a request before it is answered, and the body that is sent to the provider.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long.

    Attributes:
        asked: The request as it is sent on. Its caps are written into the body.
        terms: What it is charged by.
        estimate: Its tokens. None if no meter can read it.
        price_revision: The revision of the prices.
        clamp_at_least: The lowest cap to which it may be lowered if it is denied. None: it may not.
        price: What its tokens cost, for reports. None if the model has no price.
        estimated_costs: What it costs each limit.
    """

    asked: MeteredRequest | Unmetered
    terms: ChargeTerms
    estimate: Estimate | None
    price_revision: int
    clamp_at_least: int | None = None
    price: Price | None = None
    estimated_costs: Costs = field(init=False)

    def __post_init__(self) -> None:
        self.estimated_costs = self.terms.costs(self.estimate or NO_TOKENS)

    @property
    def costs(self) -> dict[str, int]:
        """The cost for each limit, by the names that a limiter knows."""
        return self.terms.named(self.estimated_costs)

    @property
    def written_cap(self) -> int | None:
        """The cap that was written into the body, which had none or a greater one. None: no cap was written."""
        return None if isinstance(self.asked, Unmetered) or not self.asked.changes else self.asked.written_cap

    @property
    def about(self) -> str | None:
        """
        A description of its reservation for operators, as an object in JSON. None if no limit counts tokens or money,
        or no meter can read the request. ``prices`` has the price by the name of the cost, for limits of money.
        """
        estimate, asked, terms = self.estimate, self.asked, self.terms
        if estimate is None or isinstance(asked, Unmetered):
            return None
        if METERED_UNITS.isdisjoint([limit.unit for limit in terms.limits]):
            return None
        model = encode_basestring_ascii(asked.attributes.get("model", ""))
        prices = self._prices_by_cost() if any(terms.quotes) else ""
        return (
            f'{{"model":{model},"price_revision":{self.price_revision},"input":{estimate.input},'
            f'"output":{estimate.output}{prices}}}'
        )

    def _prices_by_cost(self) -> str:
        """Return the price of each limit of money that has one, by the name of its cost. Empty if none has one."""
        names = self.terms.names or [cost_name(limit) for limit in self.terms.limits]
        rows = zip(names, self.terms.quotes, strict=True)
        # No name needs escapes in JSON: it is a unit, perhaps with a digest.
        found = {name: f'"{name}":{price_text(quote.price)}' for name, quote in rows if quote and quote.price}
        return f',"prices":{{{",".join(found.values())}}}' if found else ""

    def clamped(self, room: Sequence[int | None]) -> Opening | None:
        """
        Return the same request with the greatest lower cap that its limits would admit, or None if there is none.

        Args:
            room: The greatest cost that each limit would admit now. None for a limit that does not deny.
        """
        if self.clamp_at_least is None or self.estimate is None or isinstance(self.asked, Unmetered):
            return None
        lower = clamp(self.estimate, self.terms, room, self.clamp_at_least)
        if lower is None:
            return None
        return replace(self, asked=self.asked.with_cap(lower.cap), estimate=lower, clamp_at_least=None)


def has_tokens(asked: MeteredRequest | Unmetered) -> bool:
    """Return whether a meter can read the tokens of a request."""
    return not isinstance(asked, Unmetered) and asked.has_tokens


def is_hiding(asked: MeteredRequest | Unmetered) -> bool:
    """Return whether a request has a body that a server may understand, and that a meter cannot read."""
    return isinstance(asked, Unmetered) and (
        asked.is_lookalike or asked.reason not in ("method", "format", "websocket")
    )


def unmetered(asked: MeteredRequest | Unmetered) -> RefusedOpening:
    """Return why a request that no meter can read is denied."""
    reason = asked.reason if isinstance(asked, Unmetered) else "format"
    if reason == "format" and is_hiding(asked):
        reason = "lookalike"
    door = asked.door if isinstance(asked, Unmetered) else ""
    why = DOORS[door] if door and reason == "format" else WHY_UNMETERED[reason]
    return RefusedOpening("unmetered", f"The cost of this request cannot be read: {why}.")


def open_request(
    asked: MeteredRequest | Unmetered,
    limits: Sequence[Limit],
    rules: Metering,
    prices: Prices,
    at_us: int,
    names: tuple[str, ...] = (),
    allowed: FieldRates = NO_FIELDS,
    raised: Mapping[str, int] = NO_FACTORS,
) -> Opening | RefusedOpening:
    """
    Return what a request is charged before it is answered, or why it is denied.

    Args:
        asked: The request, as it was read.
        limits: The limits that apply to it.
        rules: The rules of its policies, see :func:`~enforcement.metering.estimate.strictest`.
        prices: The published prices, with what was learned of estimates.
        at_us: The present instant, in microseconds since the epoch.
        names: The name under which a limiter knows the cost of each limit, if the caller has it. Empty: it is computed.
        allowed: The fields that the operator of the upstream allows under a bound.
        raised: Tokens that this process adds to a bound, see :class:`~enforcement.metering.broken.BrokenBounds`.
    """
    if isinstance(asked, Unmetered) or asked.format == MCP:
        terms = unmetered_terms(limits)
        return (
            unmetered(asked) if isinstance(terms, ReservationDenial) else Opening(asked, terms, None, prices.revision)
        )
    if asked.is_counting:
        price = prices.find(asked.attributes.get("model", ""), at_us)
        quote = FREE if price is None else Quote("priced", price)  # in case that its answer reports usage
        quotes = tuple([quote if limit.unit == MONEY else None for limit in limits])
        terms = ChargeTerms(tuple(limits), quotes, names=names)
        return Opening(asked, terms, Estimate(0, 0), prices.revision, price=price)
    model = asked.attributes["model"]
    found = terms_of(limits, prices, model, at_us, names)
    if isinstance(found, ReservationDenial):
        unpriced = ", ".join(limits[index].name for index in found.denied_by)
        return RefusedOpening(found.reason, f"The model {model} has no price, and these limits need one: {unpriced}.")
    parsed = asked.read_again() if rules.estimate == "bound" else None
    if asked.tool_models:
        tools = asked.tool_models
        found = found.with_prices(lambda price: price.with_tools(tools))
    if asked.cap is None and not METERED_UNITS.isdisjoint([limit.unit for limit in limits]):
        asked = asked.with_cap(_default_cap(rules, prices.find(model, at_us)))
    try:
        if parsed is not None:
            found, estimate = _bound(asked, parsed, found, rules, prices.find(model, at_us), allowed, raised)
        else:
            if asked.modifiers:
                found = _raised(asked, found, asked.modifiers)
            estimate = _typical(asked, rules, prices.learned, found)
    except NoBound as exc:
        if any(limit.unit in METERED_UNITS and not limit.shadow for limit in limits):
            return RefusedOpening("unmetered", f"The cost of this request has no bound: {exc}.", exc.field)
        found = _raised(asked, found, asked.modifiers)
        estimate = _typical(asked, replace(rules, estimate="typical"), prices.learned, found)
    asked.forget()
    charged = [quote.price for quote in found.quotes if quote and quote.price]
    price = charged[0] if charged else prices.find(model, at_us)
    return Opening(asked, found, estimate, prices.revision, rules.clamp_at_least, price)


def refused_field(asked: MeteredRequest, prices: Prices, at_us: int, allowed: FieldRates = NO_FIELDS) -> str:
    """Return the field, or another reason, for which a bound would refuse a request that has tokens, else nothing."""
    if asked.is_counting:
        return ""
    if asked.keeps_context or asked.unbounded:
        return asked.unbounded or KEPT_CONTEXT
    model = asked.attributes["model"]
    price = prices.find(model, at_us)
    try:
        read = asked.read_again()
        demands = demands_of(
            asked.format, read.value, model, asked.parts, allowed, asked.modifiers, has_marks=read.has_marks
        )
    except NoBound as exc:
        return exc.field or str(exc)
    return "" if price is None else demands.priced_by.unknown_to(price)


def _raised(asked: MeteredRequest, terms: ChargeTerms, modifiers: Collection[str]) -> ChargeTerms:
    """Return the terms by which header fields of a request to Bedrock are charged, as its answer does not name them."""
    names = [name for name in asked.modifiers if name in modifiers] if asked.format.startswith("bedrock") else ()
    return terms.with_prices(lambda price: reduce(_times, names, price)) if names else terms


def _times(price: Price, modifier: str) -> Price:
    return price.times(max(PER_MILLE, price.multiplier(modifier)))


def _default_cap(rules: Metering, price: Price | None) -> int:
    """Return the cap of a request that names none: that of its policies, else that of its model, else the usual one."""
    if rules.default_cap is not None:
        return rules.default_cap
    return (price.default_cap if price else 0) or USUAL_OUTPUT_CAP


def _typical(asked: MeteredRequest, rules: Metering, learned: Learned, terms: ChargeTerms) -> Estimate:
    estimate = estimate_request(
        rules,
        text_bytes=asked.text_bytes,
        parts=asked.parts,
        cap=asked.cap,
        n=asked.n,
        factor=FACTOR if learned is NONE_LEARNED else learned.factor_for(asked.attributes["model"], asked.format),
        typical=typical_tokens(asked, learned),
    )
    for quote in terms.quotes:
        # Few models have such rates, so that few bodies are looked at.
        if quote and quote.price and (quote.price.rates.output_image or quote.price.rates.output_audio):
            if outputs := asked.produced(asked.read_again().value):
                return replace(estimate, priced_by=PricedBy(outputs=outputs))
            break
    return estimate


def _bound(
    asked: MeteredRequest,
    parsed: Parsed,
    terms: ChargeTerms,
    rules: Metering,
    price: Price | None,
    allowed: FieldRates,
    raised: Mapping[str, int],
) -> tuple[ChargeTerms, Estimate]:
    """
    Return what a request is charged by under a bound, and its estimate.

    Raises:
        NoBound: It has none.
    """
    if asked.keeps_context:
        raise NoBound(KEPT_CONTEXT)
    if asked.unbounded:
        raise NoBound(asked.unbounded)
    model = asked.attributes["model"]
    pattern, added = (price.pattern, price.added_tokens) if price else (model, 0)
    if raised:  # also by the model, as the prices may have come since
        names = (pattern, model, *((f"{pattern}{WITH_PARTS}", f"{model}{WITH_PARTS}") if asked.parts else ()))
        added = max(added, *[raised.get(name, 0) for name in names])
    if added > MAX_ADDED_TOKENS or (price and price.unbounded):
        what = f"requests for {shown(pattern)}{WITH_PARTS if asked.parts else ''}"
        raise NoBound(f"the provider adds more than {MAX_ADDED_TOKENS:,} tokens to {what}")
    demands = demands_of(
        asked.format, parsed.value, model, asked.parts, allowed, asked.modifiers, has_marks=parsed.has_marks
    )
    for quote in terms.quotes:
        if quote and quote.price and (name := demands.priced_by.unknown_to(quote.price)):
            pattern = quote.price.pattern
            raise NoBound(f"it has another rate by {name}, which the price of {pattern} does not have", name)
    priced_by = demands.priced_by
    if asked.modifiers and asked.format.startswith("bedrock"):
        left = tuple(name for name in priced_by.modifiers if name not in asked.modifiers)
        priced_by = priced_by._replace(modifiers=left)
    estimate = estimate_request(
        rules,
        text_bytes=asked.text_bytes,
        parts=asked.parts,
        cap=asked.cap,
        n=asked.n,
        messages=asked.objects,
        all_bytes=asked.readable_bytes(parsed.value) + parsed.growth,
        added_tokens=max(asked.added_tokens, added),
        part_bound=parts_bound(model, parsed.media, rules.part_tokens, price.part_tokens if price else NO_FACTORS),
        priced_by=priced_by,
        pattern=pattern,
    )
    if (other := parsed.value.get("model", model)) != model:
        _refuse_dearer(other, model, terms, estimate)
    terms = _raised(asked, terms, demands.priced_by.modifiers)
    if demands.factor == PER_MILLE:
        return terms, estimate
    return terms.with_prices(lambda price: price.times(demands.factor)), estimate


def _refuse_dearer(other: object, model: str, terms: ChargeTerms, estimate: Estimate) -> None:
    """Raise NoBound if the body of a request names a dearer model than its path, as some servers go by the body."""
    prices = [quote.price for quote in terms.quotes if quote and quote.price]
    if type(other) is str and any(answered_by(price, other, estimate) is not price for price in prices):
        raise NoBound(f"its path names the model {shown(model)}, and its body the dearer {shown(other)}")
