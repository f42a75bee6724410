"""The final cost of an admission, by the report of a provider."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from enforcement.logs import RateLimitedLogger
from enforcement.model.metered import MONEY
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision

if TYPE_CHECKING:
    from enforcement.metering.prices import Prices
    from enforcement.metering.reported import ReportedUsage

_SAY: Final = RateLimitedLogger(logging.getLogger("sluicegate.reservations"))


def counts_money(decision: Decision) -> bool:
    """Return whether a limit of a decision asks for prices."""
    return any(bound.limit.unit == MONEY for bound in decision.plan.bounds)


def reported_costs(
    decision: Decision, report: ReportedUsage, model: str | None, prices: Prices | None
) -> dict[str, int]:
    """Return what the reported tokens cost the limits of a decision, by the names that a limiter knows."""
    from enforcement.metering.charges import settled_costs  # most processes meter nothing
    from enforcement.metering.prices import NO_PRICES

    limits = [bound.limit for bound in decision.plan.bounds]
    return settled_costs(
        limits, NO_PRICES if prices is None else prices, model or report.model, decision.decided_at_us, report.usage
    )


def at_least_estimated(decision: Decision, costs: Mapping[str, int], estimate: Costs) -> dict[str, int]:
    """Return the costs of an answer of which not all was seen: for no limit less than its estimate."""
    estimated = {bound.cost_name: bound.cost_of(estimate) for bound in decision.plan.bounds}
    return {name: max(cost, estimated[name]) for name, cost in costs.items()}


def without_report() -> None:
    """Log that an answer had no usage, so that its estimate stays charged."""
    _SAY.warning(
        "no usage",
        "An answer reported no usage, and its estimate stays charged. Streams of chat completions report it with %s.",
        'stream_options={"include_usage": True}',
    )
