"""Decide on the requests that proxies ask about."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from enforcement.aio import Limiter
from enforcement.async_tasks import seen_through
from enforcement.http.messages import Refusal, without_token
from enforcement.logs import RateLimitedLogger
from enforcement.model.checks import shown as quoted
from enforcement.model.matching import Attributes
from enforcement.model.sizes import MAX_LIMITS_PER_REQUEST
from enforcement.model.tokens import Anonymous
from enforcement.plan.costs import Costs
from enforcement.plan.decision import Decision, Denied
from enforcement.state.live_plan import LivePlan
from enforcement.store_calls.instances import UNSUPPORTED_REASONS, reasons_against

logger = logging.getLogger("sluicegate.service")

UNSUPPORTED: Final = "limit_not_supported"
"""The code of a refusal because a limit needs to see the end of the response, which no caller reports."""


class Judge:
    """
    Decides for every protocol of the service.

    Args:
        limiter: Asks the store.
        anonymous: Stands for requests without a token. None: they are refused.
    """

    def __init__(self, limiter: Limiter, anonymous: Anonymous | None) -> None:
        self.limiter = limiter
        self._anonymous = anonymous
        self._say = RateLimitedLogger(logger)
        self._say_daily = RateLimitedLogger(logger, seconds=86_400.0)

    async def decide(
        self,
        shown: str | None,
        costs: Costs,
        attributes: Attributes | None,
        anonymous: Anonymous | None = None,
        others: Sequence[Attributes] = (),
    ) -> Decision:
        """
        Charge a request to all its limits, or to none if one denies it, and return the decision.

        Args:
            shown: The token. None if the request shows none, and an empty string if it shows an empty one.
            costs: What it costs. See :meth:`enforcement.Limiter.check`.
            attributes: Its attributes.
            anonymous: Stands for this request if it shows no token. None: what stands for all such requests does.
            others: Further attributes that it has beside these. It is charged to the counters of all of them, once to
                each.
        Raises:
            Refusal: The request needs a token, an attribute is too long, or a limit is not supported here.
            ValueError: The costs or the attributes break a rule.
        """
        plan = await self._plan(shown, attributes, anonymous, others)
        if isinstance(plan, Decision):
            return plan
        return self.limiter.noted(await self.limiter.decide(plan, costs), attributes)

    async def amend(
        self,
        shown: str | None,
        deltas: Mapping[str, int],
        attributes: Attributes | None,
        anonymous: Anonymous | None,
        others: Sequence[Attributes] = (),
    ) -> Decision:
        """
        Charge a request that has ended, or give permits back, and return a decision that denies only a token.

        Args:
            deltas: Permits to charge by unit, below 0 to give back. Other arguments are those of :meth:`decide`.
        Raises:
            Refusal, ValueError: As :meth:`decide` does. Or permits of a limit cannot be given back.
        """
        plan = await self._plan(shown, attributes, anonymous, others)
        if isinstance(plan, Decision):
            return plan
        for bound in plan.bounds:
            # A log holds each charge by its instant, which is not known here.
            if bound.limit.algorithm == "sliding_log" and deltas.get(bound.limit.unit, 0) < 0:
                raise ValueError(f"is_negative_hits: the sliding log {bound.limit.name} cannot take permits back.")
        return await seen_through(self._amended(plan, deltas))

    async def _amended(self, plan: LivePlan, deltas: Mapping[str, int]) -> Decision:
        try:
            admission = await self.limiter.admit_plan(plan, 0, None)  # it knows the present windows
        except Denied as exc:
            return exc.decision
        await admission.amend(deltas)
        return admission.decision

    def looked_at(self, token: str | None, anonymous: Anonymous | None) -> frozenset[str]:
        """Return the names of the attributes that the limits of a token look at, which has just been decided on."""
        return self.limiter.looked_at(token or anonymous or self._anonymous)

    def warn(self, about: str, text: str, *, daily: bool = False) -> None:
        """Log a warning, not more often than once in a while for the same thing, or once a day."""
        (self._say_daily if daily else self._say).warning(about, "%s", text)

    async def _plan(
        self,
        shown: str | None,
        attributes: Attributes | None,
        anonymous: Anonymous | None,
        others: Sequence[Attributes] = (),
    ) -> LivePlan | Decision:
        token = shown or without_token(shown, anonymous or self._anonymous)
        plan = await self.limiter.find_plan(token, attributes)
        if others and not isinstance(plan, Decision):
            plan = await self._merged(plan, token, others)
        if not isinstance(plan, Decision) and (plan.has_slots or plan.has_charge_on):
            raise self._unsupported(plan)
        return plan

    async def _merged(
        self, plan: LivePlan, token: str | Anonymous, others: Sequence[Attributes]
    ) -> LivePlan | Decision:
        """Return one plan of a request with several attributes of one name, or the decision that refuses it."""
        plans = [plan]
        for attributes in others:
            result = await self.limiter.find_plan(token, attributes)
            if isinstance(result, Decision):
                return result
            plans.append(result)
        merged = self.limiter.merge_plans(plans)
        if len(merged.bounds) > max(MAX_LIMITS_PER_REQUEST, len(plan.bounds)):
            detail = f"A call must be charged to at most {MAX_LIMITS_PER_REQUEST} counters, got {len(merged.bounds)}."
            raise Refusal(400, "Bad request", detail, "bad_request")
        return merged

    def _unsupported(self, plan: LivePlan) -> Refusal:
        """Return the refusal of a request under a limit whose charge would have to be given back later."""
        found = [(bound, reason) for bound in plan.bounds for reason in reasons_against(bound.limit)]
        for bound, reason in found:
            self.limiter.note_unsupported(plan, bound, reason)
        bound, reason = found[0]
        name = f"{bound.policy_slug}/{bound.limit.name}" if bound.policy_slug else bound.limit.name
        detail = (
            f"The limit {name} {UNSUPPORTED_REASONS[reason]}. The decision service never sees the response, so it "
            "cannot enforce this limit. Use the Sluicegate proxy or an integration in the application."
        )
        self.warn(name, detail)
        return Refusal(503, "The limit is not supported here", detail, UNSUPPORTED)


def costs_of(fields: Mapping[str, str]) -> dict[str, int]:
    """
    Return costs from strings, by unit.

    Raises:
        ValueError: A cost is not an integer from 0 to 2^53 - 1.
    """
    costs = {}
    for unit, text in fields.items():
        if not (text.isascii() and text.isdigit() and len(text) <= 16):
            # The message may become a header field, and a proxy takes one that is too long for a service that is gone.
            name, got = quoted(unit), quoted(text)
            raise ValueError(f"costs: the cost in {name} must be an integer of at least 0, got {got}.")
        costs[unit] = int(text)
    return costs
