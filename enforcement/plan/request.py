"""Describe a request that is to be decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from enforcement.plan import commands
from enforcement.plan.costs import Costs
from enforcement.plan.plan import Plan
from enforcement.plan.reply import MARKED, PLAIN, Reply, read, read_enrolled
from enforcement.store.resp import pack

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

    @property
    def where(self) -> Any:
        """Where the store records what is charged, a :class:`~enforcement.plan.records.RecordKeys`. None: nowhere."""
        return None

    def encode(self, now_us: int, *, clock: bool, registers: bool) -> bytes:
        """
        Return the encoded call that decides the request.

        Args:
            now_us: The time in this process, in microseconds since the epoch. It selects the calendar windows.
            clock: Whether the store uses *now_us* instead of its own clock, as in tests.
            registers: Whether the call also registers the partition values that may be new to the store.
        """
        if registers:
            return pack(commands.register_arguments(self, now_us, clock=clock))
        return commands.decide(self, now_us, clock=clock)

    def read(self, raw: object, *, registers: bool) -> tuple[Reply, Sequence[int]]:
        """
        Return the reply to the call, and for each value that it registered 1 if its overflow counter decided, else 0.

        Raises:
            StoreError: The reply has another form or length.
        """
        if registers:
            return read_enrolled(raw, len(self.plan.bounds), len(self.plan.unregistered), self.width)
        return read(raw, len(self.plan.bounds), self.width), ()

    def of_part(self, plan: OtherT, ident: str, *, charge: bool) -> Request[OtherT]:
        """Return the request for the counters of one hash tag, which is decided by a call of its own."""
        return Request(plan, self.costs, charge, ident)

    def over(self, plan: OtherT) -> Request[OtherT]:
        """Return a copy of the request for the counters of another plan."""
        return Request(plan, self.costs, self.charge, self.ident)
