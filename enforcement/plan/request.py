"""Describe a request that is to be decided."""

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
    A request that is to be decided.

    It never changes. The class is not frozen, because creating a frozen instance takes four times as long. The usual
    decision, which needs one call to the store, does without it: see :meth:`~enforcement.engine.decide.Decider.begin`.

    Attributes:
        plan: The counters of the request.
        costs: A number of requests, or permits by unit.
        charge: Whether the counters are charged. False: they are only read.
        ident: The id of the reservation that takes slots. The reply then has the marks of the windows. Empty: there is
            no reservation.
    """

    plan: PlanT
    costs: Costs
    charge: bool = True
    ident: str = ""

    @property
    def width(self) -> int:
        """How many numbers each limit has in the reply."""
        return MARKED if self.ident else PLAIN

    def over(self, plan: OtherT) -> Request[OtherT]:
        """Return a copy of the request for the counters of another plan."""
        return Request(plan, self.costs, self.charge, self.ident)
