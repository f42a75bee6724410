"""Helpers of both limiters to admit requests and to reserve for them."""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property
from time import monotonic
from types import NoneType
from typing import TYPE_CHECKING, Final

from enforcement.engine.engine import Engine
from enforcement.model.checks import shown
from enforcement.model.matching import Attributes
from enforcement.model.tokens import Anonymous
from enforcement.plan.decision import Decision, Denied
from enforcement.waiting.queues import Queues, Waiter

if TYPE_CHECKING:
    from enforcement.plan.binding import Limits
    from enforcement.plan.costs import Costs
    from enforcement.reservations.book import ReservationBook
    from enforcement.state.live_plan import LivePlan


ASK: Final = "ask"
LOOK: Final = "look"
"""Steps of :meth:`Reserving._waiting`."""


class Reserving:
    """The parts of a limiter that admissions use. :class:`~enforcement.base.BaseLimiter` has them."""

    _engine: Engine
    _budget: float
    _queues: Queues

    if TYPE_CHECKING:

        def noted(self, decision: Decision, attributes: Attributes | None) -> Decision:
            """Return the decision, after adding these attributes to it in the sample of denials."""

        def _plan_in_code(self, limits: Limits, key: str | None) -> LivePlan: ...

    def refuse(self, plan: LivePlan, reason: str, detail: str) -> Decision:
        """Return a new denial of a request for which no counter is asked, and count it."""
        planner, decider = self._engine.planner, self._engine.decider
        return decider.refused(planner.refusal(reason, plan.subject).because(detail))

    def _is_behind(self, plan: LivePlan, costs: Costs) -> bool:
        """
        Return whether a request that may wait has to let others ask first.

        Those wait for the same permits, or the store is being asked for them, and may not have enough for all.

        Raises:
            ValueError: The costs are not valid, or limits in code would not count them.
        """
        if self._queues.by_key:
            plan.check(costs)
            if self._queues.before(plan.bounds, costs):
                return True
        count = len(plan.asking)
        if not count or plan.lease is not None or plan.has_left(costs, count + 1):
            return False
        plan.check(costs)
        return True

    def _waiting(
        self, waiter: Waiter, plan: LivePlan, decision: Decision | None
    ) -> Generator[float | str, Decision | None]:
        """
        Yield what a caller that waits has to do, until its request is admitted, or raise Denied.

        Args:
            decision: The denial of its request. None: it was not asked for, as others were waiting.
        Yields:
            Seconds to sleep, unless it is woken. Or :data:`ASK` to have its request decided, or :data:`LOOK` to have it
            decided without a charge. The decision is sent in.
        """
        queues = self._queues
        try:
            while True:
                if decision is not None:
                    queues.answered(waiter, decision)
                    if decision.allowed:
                        return
                    if decision.retry_after_ms is None or monotonic() >= waiter.until:
                        break
                pause = queues.pause(waiter)
                if pause is None:
                    break
                decision = yield pause or ASK
            if decision is None:
                waits = queues.waits(waiter)
                looked = yield LOOK
                assert looked is not None
                decision = self._engine.decider.behind(plan, waiter.costs, looked, waits)
            raise Denied(decision)
        finally:
            queues.leave(waiter)

    @cached_property
    def _book(self) -> ReservationBook:
        from enforcement.reservations.book import ReservationBook  # most processes record nothing

        return ReservationBook(self._engine)


def check_subject(subject: object, key: str | None, attributes: Attributes | None) -> None:
    """Raise TypeError for a token with a key, and for limits in code with attributes."""
    if isinstance(subject, (str, Anonymous)):
        if key is not None:
            raise TypeError("key: must be None for a token. Limit.parse() makes a limit from a string.")
    elif attributes is not None and not is_no_token(subject, key):
        raise TypeError("attributes: must be None for limits in code, which do not use them.")


def is_no_token(subject: object, key: str | None) -> bool:
    """
    Return whether a token is missing, or is in bytes, as a header may be. Nobody knows such a token, which is a denial
    and not an error, as for ``check()``.
    """
    return key is None and isinstance(subject, (NoneType, bytes))


def check_life(seconds: float) -> float:
    """Return for how many seconds a reservation is to be kept, or raise ValueError."""
    from enforcement.plan.records import MAX_LIFE_SECONDS  # most processes record nothing

    if type(seconds) not in (int, float) or not 0 < seconds <= MAX_LIFE_SECONDS:
        raise ValueError(
            f"life: must be a number of seconds above 0 and at most {MAX_LIFE_SECONDS}, got {shown(seconds)}."
        )
    return seconds
