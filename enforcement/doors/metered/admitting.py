"""Admit a metered request, with what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Final

from enforcement.aio import Admission, Limiter
from enforcement.doors.metered.bodies import is_long, reading
from enforcement.metering.bound import NO_FIELDS, FieldRates
from enforcement.metering.estimate import strictest
from enforcement.metering.opening import (
    Opening,
    RefusedOpening,
    is_hiding,
    open_request,
    refused_field,
    unmetered,
)
from enforcement.metering.prices import NO_FACTORS, Prices
from enforcement.metering.request import MCP, MeteredRequest, Unmetered
from enforcement.model.matching import Attributes
from enforcement.model.metered import BOUND, DENY, METERED_UNITS, MONEY, Metering
from enforcement.plan.decision import Decision, Denied
from enforcement.state.live_plan import LivePlan, MeteredCommon

NO_PRICES_YET: Final = "The published prices could not be loaded."

_strictest = lru_cache(1_024)(strictest)


def _common(plan: LivePlan) -> MeteredCommon:
    """Return what all metered requests of a plan have in common, computed once."""
    if plan.metered is None:
        limits = tuple(bound.limit for bound in plan.bounds)
        rules = plan.metering or ()
        common = rules[0] if len(rules) == 1 else _strictest(rules)
        units = {limit.unit for limit in limits}
        plan.metered = MeteredCommon(
            limits,
            tuple(bound.cost_name for bound in plan.bounds),
            common,
            MONEY in units or (common.estimate == BOUND and not METERED_UNITS.isdisjoint(units)),
            MONEY in [limit.unit for limit in limits if not limit.shadow],
        )
    return plan.metered


def rules_of(plan: LivePlan) -> Metering:
    """Return the rules for metered requests of the policies of a plan."""
    return (plan.metered or _common(plan)).rules


def metered_keys(plan: LivePlan) -> frozenset[str]:
    """Return the keys of the counters of a plan that count tokens or money and deny what cannot be metered."""
    limits = ((bound.key, bound.limit) for bound in plan.bounds)
    return frozenset(key for key, it in limits if it.unit in METERED_UNITS and it.unmetered == DENY and not it.shadow)


async def open_metered(
    limiter: Limiter,
    plan: LivePlan,
    asked: MeteredRequest | Unmetered,
    attributes: Attributes,
    at_us: int,
    allowed: FieldRates = NO_FIELDS,
    *,
    is_signed: bool = False,
) -> tuple[Opening, Admission]:
    """
    Charge what a request may cost, and return that beside its admission.

    If its policies allow that, it gets a lower cap in place of a denial.

    Args:
        asked: The request, as a meter has read it.
        attributes: Its attributes, with those of its body.
        at_us: The present instant by the clock of the limiter, in microseconds since the epoch.
        allowed: The fields that a bound admits beside those that it knows.
        is_signed: Whether its body is signed, so that nothing can be written into it.
    Raises:
        Denied: It may not pass.
    """
    opening: Opening | RefusedOpening | None = None
    if isinstance(asked, Unmetered) or asked.format == MCP:
        opening = _hidden(plan, asked, attributes)
    if opening is None:
        common = plan.metered or _common(plan)
        prices = await limiter.find_prices() if common.waits_for_prices else limiter.prices
        if prices is None and common.needs_prices:
            opening = RefusedOpening("degraded_denied", NO_PRICES_YET)
        elif isinstance(asked, Unmetered) or not is_long(asked.body):
            opening = _opening(limiter, common, asked, at_us, allowed, prices)
        else:
            opening = await reading(asked.body, partial(_opening, limiter, common, asked, at_us, allowed, prices))
    if is_signed and isinstance(opening, Opening):
        opening = _as_signed(opening)
    if isinstance(opening, RefusedOpening):
        if opening.field:
            limiter.metered_tally().refusals.refused(opening.field, at_us)
        raise Denied(limiter.noted(limiter.refuse(plan, opening.reason, opening.detail), attributes))
    if opening.clamp_at_least is not None:
        # The limits are looked at before a denial, so that no request counts as denied that passes.
        seen = await limiter.decide(plan, opening.costs, charge=False)
        if not seen.allowed:
            opening = await _clamped(opening, _room(seen)) or opening
    try:
        return opening, await limiter.admit_plan(plan, opening.costs, attributes, opening.about)
    except Denied as denied:
        denied.decision.counting(limiter.prices.currency)
        raise


def _as_signed(opening: Opening) -> Opening | RefusedOpening:
    """Return an opening that leaves the body as it is signed, or why there is none."""
    changes = {} if isinstance(opening.asked, Unmetered) else opening.asked.changes
    if not changes:
        return replace(opening, clamp_at_least=None)
    fields = " and ".join(pointer[1:].replace("/", ".") for pointer in changes)
    return RefusedOpening(
        "unmetered",
        f"The body of this request is signed, so that nothing can be written into it: it must set {fields}.",
    )


def _hidden(plan: LivePlan, asked: MeteredRequest | Unmetered, attributes: Attributes) -> RefusedOpening | None:
    """Return why a request without tokens is denied, as a limit may apply to what its body hides. None: it is not."""
    hides = is_hiding(asked)
    if any((hides or limit.is_metered) and limit.may_apply(attributes) for limit in plan.hidden):
        return unmetered(asked)
    return None


def _opening(
    limiter: Limiter,
    common: MeteredCommon,
    asked: MeteredRequest | Unmetered,
    at_us: int,
    allowed: FieldRates,
    found: Prices | None,
) -> Opening | RefusedOpening:
    """Return what a request is charged, by the prices that were found, or by those that there are for None."""
    prices = limiter.prices if found is None else found
    raised: Mapping[str, int] = NO_FACTORS
    if common.rules.estimate == BOUND:
        raised = limiter.metered_tally().broken.raised
    elif isinstance(asked, MeteredRequest) and asked.format != MCP:
        refusals = limiter.metered_tally().refusals
        if refusals.is_next(at_us) and (field := refused_field(asked, prices, at_us, allowed)):
            refusals.would_refuse(field, at_us)
    return open_request(asked, common.limits, common.rules, prices, at_us, common.names, allowed, raised)


async def _clamped(opening: Opening, room: list[int | None]) -> Opening | None:
    if isinstance(opening.asked, Unmetered):
        return None
    return await reading(opening.asked.body, partial(opening.clamped, room))


def _room(decision: Decision) -> list[int | None]:
    return [state.remaining if state.mode == "enforce" else None for state in decision.limits]
