"""The limiter for threads. :mod:`enforcement.aio` has the same names for asyncio."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, Self

from enforcement.base import START_SECONDS, BaseLimiter, Limits, check_subject
from enforcement.decorator import (
    Declaration,
    Declared,
    FunctionCosts,
    FunctionKey,
    P,
    R,
    Waiting,
    declared,
)
from enforcement.latency import Timing
from enforcement.model.matching import Attributes
from enforcement.plan.binding import Costs
from enforcement.plan.commands import Steps
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.request import Request
from enforcement.settings import Settings
from enforcement.state.live_plan import LivePlan
from enforcement.state.reservation import Reservation, new_ident
from enforcement.store.errors import StoreError


class Limiter(BaseLimiter):
    """
    Decides requests, from any number of threads.

    >>> with Limiter("redis://127.0.0.1:6379/0") as limiter:
    ...     decision = limiter.hit(Limit.parse("100/minute"), "user:42")

    One serves a whole process, and forked children go on with it. It does no I/O before its first call.
    """

    def _set_up(self, settings: Settings) -> None:
        super()._set_up(settings)
        self._pipe = self._engine.health.connector.pipe(settings.timeout)
        self._engine.health.on_recovery = self._pipe.close  # what was connected before the outage is not any more

    def _time_calls(self, timing: Timing) -> None:
        self._pipe.call = timing.of_calls(self._pipe.call)  # type: ignore[method-assign]

    def start(self, timeout: float = START_SECONDS) -> bool:
        """
        Start the background thread and wait until documents are there. The first check does it by itself, and waits.

        Args:
            timeout: Seconds to wait.
        Returns:
            Whether documents were loaded, from the store or, while it is away, from the last good ones on disk.
        """
        self._started = True
        return self._engine.start(timeout)

    def close(self) -> None:
        """Report what is not yet reported, leave the fleet, close connections. It may be started again."""
        if self._started:
            self._started = False
            self._engine.stop()
        self._pipe.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, token: str, costs: Costs = 1, attributes: Attributes | None = None) -> Decision:
        """
        Charge a request to every limit that a token falls under, or to none.

        Args:
            token: The credential as the client sent it.
            costs: An integer number of requests, or a mapping of units to integers. A unit that a mapping leaves out
                costs 0, but ``requests`` costs 1.
            attributes: Name-value pairs that limits match on or are partitioned by.
        Returns:
            The decision. An unknown, revoked or expired token is a denial with its own reason, not an error.
        Raises:
            ValueError: Costs or attributes that cannot be read; nothing was charged.
        """
        plan = self._documents.derived.plans.get(token) if type(token) is str else None
        if plan is None:
            plan = self.find_plan(token, attributes)
            if isinstance(plan, Decision):
                return plan
        begun = self._begin(plan, costs, True, "")
        return begun if type(begun) is Decision else self._ask(begun, plan, costs)

    def hit(self, limits: Limits, key: str, costs: Costs = 1) -> Decision:
        """
        Charge a request to limits that stand in code, all or none, in one atomic decision.

        Args:
            limits: One, or several with different names.
            key: Whom they count, for instance ``"user:42"``.
            costs: As in :meth:`check`.
        Raises:
            ValueError: Costs, key or limits that cannot be used; a concurrency limit among them: admit it.
            TypeError: Something is not a Limit. ``Limit.parse()`` makes one from a string.
        """
        plan = self._in_code.get((key, id(limits))) or self._plan_in_code(limits, key)
        if plan.has_slots:
            raise ValueError("limits: a concurrency limit is held, not hit; use admit().")
        begun = self._begin(plan, costs, True, "")
        return begun if type(begun) is Decision else self._ask(begun, plan, costs)

    def peek(self, limits: Limits, key: str) -> Decision:
        """Return the decision on a request of cost 1, and charge nothing. ``remaining`` is what remains now."""
        return self.decide(self._plan_in_code(limits, key), 1, charge=False)

    def acquire(self, limits: Limits, key: str, costs: Costs = 1, *, max_wait: float) -> Decision:
        """
        Charge as :meth:`hit` does, and wait for permits where there are none.

        Args:
            max_wait: Seconds to wait at most. Whoever would have to wait longer is denied at once, and whoever waits is
                served in no particular order.
        Returns:
            The decision that allowed it.
        Raises:
            Denied: It cannot pass in time, or no wait helps.
            ValueError: As in :meth:`hit`, or a *max_wait* that is no span.
        """
        waiting = Waiting(max_wait)
        while not (decision := self.hit(limits, key, costs)).allowed:
            time.sleep(waiting.pause(decision))
        return decision

    def limited(
        self, limits: Declared, *, key: FunctionKey = None, costs: FunctionCosts = 1, max_wait: float = 0.0
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """
        Return a decorator that charges each call of a function, and raises Denied in place of a call that may not be.

        >>> @limiter.limited("10/minute; 100/day", key="user:{user_id}")
        ... def send(user_id, text): ...

        A slot of a concurrency limit is held while the function runs. A call that fails was made, and stays charged.

        Args:
            limits: ``"10/minute; 100/day"``, a Limit, or a list of either: one atomic decision.
            key: Whom a call counts for: a format of the arguments, or a function that gets them and returns a string,
                an integer, a UUID, or None for no limit; None: all calls of the function together.
            costs: What a call costs, as in :meth:`check`, or a function of its arguments that says so.
            max_wait: Seconds that a call may wait for permits; 0: not at all.
        Raises:
            ValueError, TypeError: When the function is decorated, and not when it is first called: something of this
                cannot be used.
        """
        values = declared(limits)
        return lambda function: _limit_calls(self, function, Declaration(function, values, key, costs, max_wait))

    @contextmanager
    def admit(
        self,
        token: str | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
    ) -> Generator[Admission]:
        """
        Charge an estimate and hold slots while a block runs.

        The slots are freed when the block ends. If it ends with an exception, the estimate is given back as well,
        unless it was settled.

        Args:
            token: A token, or limits in code together with *key*.
            costs: The estimate, as in :meth:`check`.
        Raises:
            Denied: The request does not pass. The block is not entered and nothing was charged.
            ValueError: As in :meth:`check` and :meth:`hit`.
            TypeError: A token with a *key*, or limits in code with *attributes*.
        """
        admission = self.open_admission(token, key, costs, attributes)
        try:
            yield admission
        except BaseException:
            admission.finish(None)
            raise
        else:
            admission.free_slots()

    def open_admission(
        self,
        token: str | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
    ) -> Admission:
        """
        Charge an estimate and hold slots until :meth:`Admission.finish` is called.

        Use this where a ``with`` block cannot span the request. Arguments and errors are those of :meth:`admit`.
        """
        check_subject(token, key, attributes)
        plan: LivePlan | Decision
        plan = self.find_plan(token, attributes) if isinstance(token, str) else self._plan_in_code(token, key or "")
        if isinstance(plan, Decision):
            raise Denied(plan)
        return self.admit_plan(plan, costs)

    def reset(self, limits: Limits, key: str) -> None:
        """
        Forget what limits in code have counted for a key.

        Raises:
            enforcement.StoreError: The store did not do it.
        """
        self._run(self._decider.resetting(self._plan_in_code(limits, key)))

    # For doors, which find a plan once and then see what it takes.

    def find_plan(self, token: object, attributes: Attributes | None) -> LivePlan | Decision:
        """Return what a request with this token falls under, or its refusal."""
        if not self._started:
            self.start()
        return self._run(self._decider.finding(token, attributes))  # type: ignore[no-any-return]

    def admit_plan(self, plan: LivePlan, costs: Costs) -> Admission:
        """Open an admission for a plan that :meth:`find_plan` returned. Raises Denied."""
        ident = new_ident()
        decision = self.decide(plan, costs, ident=ident)
        if not decision.allowed:
            raise Denied(decision)
        admission = Admission(self, self._engine.reservation(plan, costs, decision, ident))
        self._engine.slots.keep(admission.reservation)
        return admission

    def decide(self, plan: LivePlan, costs: Costs, *, charge: bool = True, ident: str = "") -> Decision:
        """Return the decision on a plan. Arguments are those of :class:`~enforcement.plan.request.Request`."""
        begun = self._begin(plan, costs, charge, ident)
        return begun if type(begun) is Decision else self._ask(begun, plan, costs, charge, ident)

    def _ask(
        self, command: Decision | bytes | None, plan: LivePlan, costs: Costs, charge: bool = True, ident: str = ""
    ) -> Decision:
        """Return a decision that needs the store, given the *command* that ``begin`` returned."""
        decider, came = self._decider, None
        if command is not None:
            try:
                came = self._pipe.call(command)  # type: ignore[arg-type]
                decision = decider.answer(plan, costs, charge, ident, came)
            except StoreError as exc:
                came = exc
            else:
                if decision is not None:
                    return decision
        return self._run(decider.deciding(Request(plan, costs, charge, ident), came))  # type: ignore[no-any-return]

    def _run(self, steps: Steps) -> Any:
        """Drive steps to their end, and return what they return."""
        try:
            command = next(steps)
            while True:
                try:
                    reply = self._pipe.call(command)
                except StoreError as exc:
                    command = steps.throw(exc)
                else:
                    command = steps.send(reply)
        except StopIteration as stop:
            return stop.value


def _limit_calls(limiter: Limiter, function: Callable[P, R], rule: Declaration) -> Callable[P, R]:
    """Return *function* with its limits applied to each call. Raises TypeError for a coroutine function."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__}: must not be asynchronous. Use an enforcement.aio.Limiter.")

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        key = rule.key(args, kwargs)
        if key is None:
            return function(*args, **kwargs)
        costs = rule.costs(args, kwargs)
        if not rule.holds:
            limiter.acquire(rule.limits, key, costs, max_wait=rule.max_wait)
            return function(*args, **kwargs)
        admission = limiter.open_admission(rule.limits, key, costs)
        try:
            return function(*args, **kwargs)
        finally:
            # The charge stays, because a call that fails was made.
            admission.free_slots()

    return limited


class Admission:
    """
    A request that was admitted, and what it holds until it ends.

    Attributes:
        decision: The decision that admitted it.
        reservation: The charges and slots.
    """

    def __init__(self, limiter: Limiter, reservation: Reservation) -> None:
        self.decision = reservation.decision
        self.reservation = reservation
        self._limiter = limiter
        self._finished = False

    def settle(self, costs: Costs | Mapping[str, int]) -> None:
        """
        Replace the estimate by the real cost, which may be higher or lower. Only the first settlement counts.

        Args:
            costs: A number of requests, or a mapping of units. A unit that is left out keeps its estimate.
        Raises:
            ValueError: The costs are not valid; the estimate is kept.
        """
        self._limiter._run(self.reservation.settling(costs))

    def charge_for(self, status: int) -> None:
        """Settle by the HTTP status of the response. Limits whose ``charge_on`` does not list it charge nothing."""
        self._limiter._run(self.reservation.charging_for(status))

    def cancel(self) -> None:
        """Give everything back, as an exception does. After a settlement only the slots are freed."""
        self._limiter._run(self.reservation.cancelling())

    def finish(self, status: int | None) -> None:
        """
        Charge for the status of the response, unless settled, and free the slots. A second call changes nothing.

        A store that is away raises no error here: what it missed is sent to it later.

        Args:
            status: HTTP status. None if no response was made: everything is given back, as by :meth:`cancel`.
        """
        if self._finished:
            return
        self._finished = True
        try:
            self._limiter._run(self.reservation.finishing(status))
        finally:
            self.free_slots()

    def free_slots(self) -> None:
        """Free the slots. What was charged can still be settled."""
        self._limiter._engine.slots.drop(self.reservation)
        self._limiter._run(self.reservation.leaving())
