"""The limiter for threads. :mod:`enforcement.aio` has the same names for asyncio."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from functools import wraps
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from enforcement.base import START_SECONDS, BaseLimiter
from enforcement.decorator import (
    RULES,
    Declaration,
    FunctionCosts,
    FunctionKey,
    FunctionLimits,
    P,
    R,
    check_declared,
)
from enforcement.latency import Timing
from enforcement.model.matching import Attributes
from enforcement.model.tokens import Anonymous
from enforcement.plan.binding import Limits
from enforcement.plan.commands import ResultT, Steps
from enforcement.plan.costs import Costs, own_costs
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.request import Request
from enforcement.reservations.admitting import Admission, Admitting
from enforcement.run_steps import run, run_within
from enforcement.settings import Settings
from enforcement.state.live_plan import LivePlan
from enforcement.store.errors import StoreError
from enforcement.waiting.queues import checked_wait, is_in_time
from enforcement.waiting.waiters import WaitingThread

if TYPE_CHECKING:
    from enforcement.engine.decide import Begun
    from enforcement.engine.parts import Taken
    from enforcement.metering.prices import Prices


class Limiter(Admitting, BaseLimiter):
    """
    Decide requests, from any number of threads.

    >>> with Limiter("redis://127.0.0.1:6379/0") as limiter:
    ...     decision = limiter.hit(Limit.parse("100/minute"), "user:42")

    One limiter is enough for a process. Forked children can go on using it. It does no I/O before its first call.
    """

    def _set_up(self, settings: Settings) -> None:
        super()._set_up(settings)
        connector = self._engine.health.connector
        self._pipe = connector.pipe(settings.timeout)
        self._lookup_pipe = connector.pipe(settings.lookup_seconds, respects_breakers=False)
        self.run_reading = lambda steps: run_within(steps, self._lookup_pipe, settings.lookup_seconds)
        self._engine.health.on_recovery = self._hang_up  # connections from before the outage are dead

    def _hang_up(self) -> None:
        self._pipe.close()
        self._lookup_pipe.close()

    def _time_calls(self, timing: Timing) -> None:
        for pipe in (self._pipe, self._lookup_pipe):
            pipe.call = timing.of_calls(pipe.call)  # type: ignore[method-assign]
            pipe.call_again = timing.of_calls(pipe.call_again)  # type: ignore[method-assign]

    def start(self, timeout: float = START_SECONDS) -> bool:
        """
        Start the background thread, wait at most *timeout* seconds for documents, and return whether they are loaded.

        The first check does the same by itself.

        Args:
            timeout: Seconds to wait.
        Returns:
            Whether documents were loaded from the store or, if it is unavailable, from the copy on disk.
        """
        return self._start(timeout)

    def ping(self) -> None:
        """
        Ask the store for a decision that charges nothing, within a second, and raise StoreError if it makes none.

        Call it at the start if the application must not run without the store. It loads a missing function library.

        Raises:
            enforcement.StoreError: The store is unavailable, or refused the call.
        """
        self._ping()

    def close(self) -> None:
        """Send the remaining usage, leave the fleet and close the connections. The limiter can be started again."""
        if self._started:
            self._rest()
            self._engine.stop()
        self._hang_up()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, token: str | Anonymous, costs: Costs = 1, attributes: Attributes | None = None) -> Decision:
        """
        Charge a request to all limits of a token, or to none if one of them denies it, and return the decision.

        Args:
            token: The credential as the client sent it, or :class:`enforcement.Anonymous` for a request without one.
            costs: A number of requests, or a mapping of units to permits. A unit that is not in the mapping costs 0,
                except ``requests``, which then costs 1.
            attributes: Names and values that limits match on or are partitioned by.
        Returns:
            The decision. An unknown, revoked or expired token is a denial with its own reason, not an error.
        Raises:
            ValueError: Costs or attributes are not valid. Nothing was charged.
        """
        plan = self._documents.derived.plans.get(token) if type(token) is str else None
        if plan is None:
            found = self.find_plan(token, attributes)
            if isinstance(found, Decision):
                return found
            plan = found
            if attributes:
                decision = self.decide(plan, costs)
                return decision if decision.allowed else self.noted(decision, attributes)
        begun = self._begin(plan, costs, True, "")
        return begun if type(begun) is Decision else self._ask(begun, plan, costs)

    def hit(self, limits: Limits, key: str | None = None, costs: Costs = 1) -> Decision:
        """
        Charge a request to all of some limits in code, or to none if one of them denies it, and return the decision.

        Args:
            limits: One limit, or several with different names. If they have different keys, pairs of one or several
                limits and their key, such as ``[(per_ip, ip), (overall, "all")]``.
            key: Whose requests are counted together, for instance ``"user:42"``. None if *limits* are pairs.
            costs: As in :meth:`check`. They must name the unit of at least one limit, and no unit that no limit counts.
        Raises:
            ValueError: Costs, key or limits are not valid, or one is a concurrency limit, which needs :meth:`admit`.
            TypeError: A limit is not a Limit. ``Limit.parse()`` makes one from a string.
        """
        plan = self._in_code.get((key, id(limits))) or self._plan_in_code(limits, key)
        if plan.has_slots:
            raise ValueError("limits: must not be concurrency limits, which need admit() instead of hit().")
        begun = self._begin(plan, costs, True, "")
        return begun if type(begun) is Decision else self._ask(begun, plan, costs)

    def peek(self, limits: Limits, key: str | None = None, costs: Costs | None = None) -> Decision:
        """
        Return the decision on a request, by default of one permit of each unit, without charging it.

        Args:
            costs: As in :meth:`hit`. ``allowed`` answers for these costs. None: one permit of each unit that the limits
                count.
        Returns:
            The decision that :meth:`hit` would make now. ``remaining`` is what remains without the request.
        Raises:
            ValueError, TypeError: As in :meth:`hit`, but concurrency limits can be read, too.
        """
        plan = self._plan_in_code(limits, key)
        return self.decide(plan, plan.one_of_each if costs is None else costs, charge=False)

    def acquire(self, limits: Limits, key: str | None = None, costs: Costs = 1, *, max_wait: float) -> Decision:
        """
        Charge as :meth:`hit` does, wait if permits are missing, and return the decision that allows the request, or
        raise Denied.

        Args:
            max_wait: Seconds to wait at most. A call that would have to wait longer is denied at once. The calls that
                wait in a process are admitted in the order of their arrival, whatever their costs. 0: do not wait.
        Raises:
            Denied: The request cannot pass in time, or no wait helps.
            ValueError: As in :meth:`hit`, or *max_wait* is not a number of seconds.
        """
        began = monotonic()
        until, denial = began + checked_wait(max_wait), None
        plan = self._in_code.get((key, id(limits))) or self._plan_in_code(limits, key)
        if not (max_wait and (plan.asking or self._queues.by_key) and self._is_behind(plan, costs)) or plan.has_slots:
            asking = object()
            plan.asking.add(asking)
            try:
                denial = self.hit(limits, key, costs)
            finally:
                plan.asking.discard(asking)
            if denial.allowed:
                return denial
            if not is_in_time(denial, until):
                raise Denied(denial)
        costs = own_costs(costs)

        def ask() -> Decision:
            # A reservation, as it is given back if the caller is gone when the store answers. No lease admits one.
            return self.hit(limits, key, costs) if plan.lease else self.open_admission(limits, key, costs).decision

        return self._wait(WaitingThread(plan.bounds, costs, began, until), plan, denial, ask)

    def limited(
        self,
        limits: FunctionLimits,
        *,
        key: FunctionKey = None,
        costs: FunctionCosts = 1,
        max_wait: float = 0.0,
        scope: str | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """
        Return a decorator that charges each call of a function, and raises Denied if a call is denied.

        >>> @limiter.limited("10/minute; 100/day", key="user:{user_id}")
        ... def send(user_id, text): ...

        A slot of a concurrency limit is held while the function runs. A call that raises an exception stays charged.

        Args:
            limits: ``"10/minute; 100/day"``, a Limit, or a list of either. They decide together, as in :meth:`hit`. Or
                a function of the arguments that returns them, or None for no limit, which needs *key*. Or pairs of
                either and a *key*, such as ``[("50/minute", "ip:{ip}"), ("100/minute", "all")]``.
            key: Which calls are counted together. It is a format of the arguments (``"user:{user_id}"``), none of
                which may be None, or a function that takes them and returns a string, an integer or a UUID, or None if
                no limit applies. None: all calls of the function.
            costs: The costs of a call, as in :meth:`check`, or a function that takes its arguments and returns them.
            max_wait: Seconds that a call may wait for permits or slots, as in :meth:`acquire`. 0: it does not wait.
            scope: Name of the counters. None: that of the function. Functions of the same scope share counters.
        Raises:
            ValueError, TypeError: An argument is not valid. This is raised when the function is decorated, not when it
                is first called.
        """
        check_declared(limits, key)
        return lambda function: _limit_calls(self, function, Declaration(function, limits, key, costs, max_wait, scope))

    def reset(self, limits: Limits, key: str | None = None) -> None:
        """
        Delete the counters of limits in code for a key, or for their own keys.

        Raises:
            enforcement.StoreError: The store is unavailable, or refused the call.
        """
        self._run(self._decider.resetting(self._plan_in_code(limits, key)))

    def find_prices(self) -> Prices | None:
        """
        Return the published prices, or None if they cannot be had now.

        The first calls wait for them, together at most a second. A limiter that never calls this reads no prices.
        """
        if not self._ready:
            self.start(self._first_wait())
        prices = self._engine.prices()
        return prices.current if prices.wait() else None

    # Used by the integrations, which need the plan to choose between a hit and an admission.

    def find_plan(self, token: object, attributes: Attributes | None) -> LivePlan | Decision:
        """Return the plan of a request with this token or without one, or the decision that refuses it."""
        if not self._ready:
            self.start(self._first_wait())
        lookup, derived = self._engine.lookup, self._documents.derived
        found = lookup.known(token)
        if isinstance(found, str):
            found = lookup.once(found, self._lookup_pipe, self._engine.settings.lookup_seconds)
        return lookup.plan(derived, token, found, attributes)

    def decide(self, plan: LivePlan, costs: Costs, *, charge: bool = True, ident: str = "") -> Decision:
        """Decide a request by the counters of a plan, charge it unless *charge* is False, and return the decision."""
        begun = self._begin(plan, costs, charge, ident)
        return begun if type(begun) is Decision else self._ask(begun, plan, costs, charge, ident)

    def _ask(self, begun: Begun, plan: LivePlan, costs: Costs, charge: bool = True, ident: str = "") -> Decision:
        """Send what ``begin`` returned to the store, and return the decision."""
        decider, deadline = self._decider, monotonic() + self._budget
        if type(begun) is bytes:
            came: object
            try:
                came = self._pipe.call(begun, deadline)
                decision = decider.answer(plan, costs, charge, ident, came)
            except StoreError as exc:
                came = exc
            else:
                if decision is not None:
                    return decision
            begun = decider.deciding(Request(plan, costs, charge, ident), came)
        elif not isinstance(begun, Generator):
            taken: Taken = begun  # type: ignore[assignment]
            try:
                came = self._pipe.call(taken.command, deadline)
                decision = decider.answer_others(plan, costs, taken, came)
            except StoreError as exc:
                came = exc
            except BaseException:  # such as a time limit of the program around it
                decider.give_up(taken)
                raise
            else:
                if decision is not None:
                    return decision
            begun = decider.deciding_others(plan, costs, taken, came)
        return run_within(begun, self._pipe, deadline - monotonic())

    def _run(self, steps: Steps[ResultT]) -> ResultT:
        """Send the commands that a generator yields to the store, each with a whole budget, and return its result."""
        return run(steps, self._pipe.call)


def _limit_calls(limiter: Limiter, function: Callable[P, R], rule: Declaration) -> Callable[P, R]:
    """Return *function* behind its limits. Raises TypeError for a coroutine function."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__}: must not be asynchronous. Use an enforcement.aio.Limiter.")

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        call = rule.call(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        if not call.holds:
            limiter.acquire(call.limits, call.key, call.costs, max_wait=rule.max_wait)
            return function(*args, **kwargs)
        admission = limiter.open_admission(call.limits, call.key, call.costs, max_wait=rule.max_wait)
        try:
            return function(*args, **kwargs)
        finally:
            # The charge stays, because a call that fails was made.
            admission.free_slots()

    setattr(limited, RULES, rule.rules)
    return limited


__all__ = ["Admission", "Limiter"]
