"""The request that a decision is made on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from enforcement.plan.binding import Costs
from enforcement.plan.plan import Plan
from enforcement.plan.reply import MARKED, PLAIN

PlanT = TypeVar("PlanT", bound=Plan, covariant=True)
OtherT = TypeVar("OtherT", bound=Plan)


@dataclass(slots=True)
class Request(Generic[PlanT]):
    """
    One request on its way to a decision. Nobody changes it; not frozen, since that would quadruple what it costs.

    A plain decision that the store makes at once passes without one; see
    :meth:`~enforcement.engine.decide.Decider.begin`.

    Attributes:
        plan: The counters that it falls under.
        costs: Permits by unit, or a number of requests.
        charge: Whether it is charged; False only looks.
        ident: Id of a reservation, under which slots are taken; asks for the marks of the windows. Empty: none.
    """

    plan: PlanT
    costs: Costs
    charge: bool = True
    ident: str = ""

    @property
    def width(self) -> int:
        """Numbers a limit in its reply."""
        return MARKED if self.ident else PLAIN

    def over(self, plan: OtherT) -> Request[OtherT]:
        """Return the same request over the counters of another plan."""
        return Request(plan, self.costs, self.charge, self.ident)
