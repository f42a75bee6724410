"""
The limiter for asyncio. It has the names of :mod:`enforcement.limiter`.

Checks that wait at the same time share a round trip.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial, wraps
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hiredis import ReplyError

from enforcement.async_tasks import SharedTasks, seen_through
from enforcement.base import START_SECONDS, BaseLimiter
from enforcement.decorator import (
    RULES,
    CoroutineFunction,
    Declaration,
    FunctionCosts,
    FunctionKey,
    FunctionLimits,
    P,
    R,
    check_declared,
)
from enforcement.engine.token_lookup import Found
from enforcement.latency import Timing
from enforcement.model.matching import Attributes
from enforcement.model.tokens import Anonymous
from enforcement.plan.binding import Limits
from enforcement.plan.commands import ResultT, Steps
from enforcement.plan.costs import Costs, own_costs
from enforcement.plan.decision import Decision, Denied
from enforcement.plan.request import Request
from enforcement.reservations.aio_admitting import Admission, AwaitedAdmitting
from enforcement.run_steps import reply_through, run_awaited, run_awaited_within, run_through
from enforcement.settings import Settings
from enforcement.state.live_plan import LivePlan
from enforcement.store.connector import AwaitedPipe
from enforcement.store.errors import StoreError
from enforcement.waiting.queues import checked_wait, is_in_time

if TYPE_CHECKING:
    from enforcement.engine.decide import Begun
    from enforcement.engine.parts import Taken
    from enforcement.metering.prices import Prices


class Limiter(AwaitedAdmitting, BaseLimiter):
    """
    Decide requests for the tasks of one event loop, with the names of :class:`enforcement.Limiter`.

    >>> async with Limiter("redis://127.0.0.1:6379/0") as limiter:
    ...     decision = await limiter.hit(Limit.parse("100/minute"), "user:42")
    """

    def _set_up(self, settings: Settings) -> None:
        super()._set_up(settings)
        # Decides a request of cost 1 on a lease. If it returns None, use decide().
        self.from_lease = self._decider.one_from_lease
        connector = self._engine.health.connector
        self._pipe = connector.async_pipe(settings.timeout)
        self._lookup_pipe = connector.async_pipe(settings.lookup_seconds, respects_breakers=False)
        span, pipe = settings.lookup_seconds, self._lookup_pipe
        self.run_reading = lambda steps: run_awaited_within(steps, pipe, monotonic() + span)
        self._starts: SharedTasks[bool] = SharedTasks()
        self._look_ups: SharedTasks[Found] = SharedTasks()
        self._engine.health.on_recovery = partial(_renew, (self._pipe, self._lookup_pipe))

    def _time_calls(self, timing: Timing) -> None:
        for pipe in (self._pipe, self._lookup_pipe):
            pipe.call = timing.of_awaited_calls(pipe.call)  # type: ignore[method-assign]
            pipe.call_again = timing.of_awaited_calls(pipe.call_again)  # type: ignore[method-assign]

    async def start(self, timeout: float = START_SECONDS) -> bool:
        """
        Start the background thread, wait at most *timeout* seconds for documents, and return whether they are loaded.
        See the sync limiter.
        """
        return await asyncio.to_thread(self._start, timeout)

    async def ping(self) -> None:
        """
        Ask the store for a decision, and raise StoreError if it makes none. Raises StoreError if it does not. See the
        sync limiter.
        """
        await asyncio.to_thread(self._ping)

    async def close(self) -> None:
        """Send the remaining usage, leave the fleet and close the connections. The limiter can be started again."""
        if self._started:
            self._rest()
            await asyncio.to_thread(self._engine.stop)
        await self._pipe.finish()
        await self._lookup_pipe.finish()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def check(self, token: str | Anonymous, costs: Costs = 1, attributes: Attributes | None = None) -> Decision:
        """
        Charge a request to all limits of a token, or to none if one of them denies it, and return the decision. See the
        sync limiter.
        """
        plan = self._documents.derived.plans.get(token) if type(token) is str else None
        if plan is None:
            found = await self.find_plan(token, attributes)
            if isinstance(found, Decision):
                return found
            plan = found
            if attributes:
                decision = await self.decide(plan, costs)
                return decision if decision.allowed else self.noted(decision, attributes)
        begun = self._begin(plan, costs, True, "")
        return begun if type(begun) is Decision else await self._ask(begun, plan, costs)

    async def hit(self, limits: Limits, key: str | None = None, costs: Costs = 1) -> Decision:
        """
        Charge a request to all of some limits in code, or to none if one denies it, and return the decision. See the
        sync limiter.
        """
        plan = self._in_code.get((key, id(limits))) or self._plan_in_code(limits, key)
        if plan.has_slots:
            raise ValueError("limits: must not be concurrency limits, which need admit() instead of hit().")
        begun = self._begin(plan, costs, True, "")
        return begun if type(begun) is Decision else await self._ask(begun, plan, costs)

    async def peek(self, limits: Limits, key: str | None = None, costs: Costs | None = None) -> Decision:
        """
        Return the decision on a request, by default of one permit of each unit, without charging it. See the sync
        limiter.
        """
        plan = self._plan_in_code(limits, key)
        return await self.decide(plan, plan.one_of_each if costs is None else costs, charge=False)

    async def acquire(self, limits: Limits, key: str | None = None, costs: Costs = 1, *, max_wait: float) -> Decision:
        """
        Charge as :meth:`hit` does, wait if permits are missing, and return the decision that allows the request, or
        raise Denied. See the sync limiter.
        """
        began = monotonic()
        until, denial = began + checked_wait(max_wait), None
        plan = self._in_code.get((key, id(limits))) or self._plan_in_code(limits, key)
        if not (max_wait and (plan.asking or self._queues.by_key) and self._is_behind(plan, costs)) or plan.has_slots:
            asking = object()
            plan.asking.add(asking)
            try:
                denial = await self.hit(limits, key, costs)
            finally:
                plan.asking.discard(asking)
            if denial.allowed:
                return denial
            if not is_in_time(denial, until):
                raise Denied(denial)
        costs = own_costs(costs)

        async def ask() -> Decision:
            if plan.lease:
                return await self.hit(limits, key, costs)
            return (await self.open_admission(limits, key, costs)).decision

        return await self._wait(self._waiter(plan, costs, began, until), plan, denial, ask)

    def limited(
        self,
        limits: FunctionLimits,
        *,
        key: FunctionKey = None,
        costs: FunctionCosts = 1,
        max_wait: float = 0.0,
        scope: str | None = None,
    ) -> Callable[[CoroutineFunction[P, R]], CoroutineFunction[P, R]]:
        """
        Return a decorator that charges each call of a coroutine function, and raises Denied if a call is denied. See
        the sync limiter.
        """
        check_declared(limits, key)
        return lambda function: _limit_awaited(
            self, function, Declaration(function, limits, key, costs, max_wait, scope)
        )

    async def reset(self, limits: Limits, key: str | None = None) -> None:
        """
        Delete the counters of limits in code for a key, or for their own keys. Raises StoreError if the store did not
        do it.
        """
        await self._run(self._decider.resetting(self._plan_in_code(limits, key)))

    # Used by the integrations, which need the plan to choose between a hit and an admission.

    async def find_prices(self) -> Prices | None:
        """
        Return the published prices, or None if they cannot be had now. The first calls wait for them, at most a second.
        See the sync limiter.
        """
        if not self._ready:
            await self._starts.result("", lambda: self.start(self._first_wait()))
        prices = self._engine.prices()
        if not prices.is_loaded:
            await self._starts.result("prices", lambda: asyncio.to_thread(prices.wait))
        return prices.current if prices.is_loaded else None

    async def find_plan(self, token: object, attributes: Attributes | None) -> LivePlan | Decision:
        """Return the plan of a request with this token, or the decision that refuses the token."""
        if not self._ready:
            await self._starts.result("", lambda: self.start(self._first_wait()))
        derived = self._documents.derived
        cached = derived.plans.get(token) if type(token) is str else None
        if cached is not None:
            return cached
        lookup = self._engine.lookup
        found = lookup.known(token)
        if isinstance(found, str):
            found = await self._look_up(found)
        return lookup.plan(derived, token, found, attributes)

    def merge_plans(self, plans: Sequence[LivePlan]) -> LivePlan:
        """Return one plan with the counters of several plans of one token, each of them once."""
        return self._engine.planner.merged(plans)

    async def _look_up(self, name: str) -> Found:
        """Return the entry of a token or a denial, read once for all tasks that want it, whoever is cancelled."""
        lookup, seconds = self._engine.lookup, self._engine.settings.lookup_seconds
        return await self._look_ups.result(name, lambda: lookup.awaited(name, self._lookup_pipe, seconds))

    def by_fields(self, fields: Iterable[tuple[bytes, bytes]]) -> LivePlan | None:
        """
        Return the cached plan for the only ``Authorization`` field of a request, or None.

        Returns:
            None if no plan is cached for it, or if the request does not have exactly one such field.
        """
        found = None
        for name, value in fields:
            if name == b"authorization":
                if found is not None:
                    return None
                found = value
        return None if found is None else self._documents.derived.headers.get(found)

    def keep_field(self, field: bytes, token: str | Anonymous) -> None:
        """
        Cache the plan of *token* for :meth:`by_fields`, if it needs no slots, no meter, and not the status of the
        response.

        Args:
            field: The value of an ``Authorization`` field that itself shows the token.
        """
        derived = self._engine.documents.derived
        plan = derived.plans.get(token)
        if plan is not None and not (plan.has_slots or plan.has_charge_on or plan.metering):
            derived.keep_header(field, plan)

    async def decide(self, plan: LivePlan, costs: Costs, *, charge: bool = True, ident: str = "") -> Decision:
        """Decide a request by the counters of a plan, charge it unless *charge* is False, and return the decision."""
        begun = self._begin(plan, costs, charge, ident)
        return begun if type(begun) is Decision else await self._ask(begun, plan, costs, charge, ident)

    async def _ask(self, begun: Begun, plan: LivePlan, costs: Costs, charge: bool = True, ident: str = "") -> Decision:
        """Send what ``begin`` returned to the store, and return the decision."""
        decider, pipe, deadline = self._decider, self._pipe, monotonic() + self._budget
        if type(begun) is bytes:
            came: object
            try:
                came = await pipe.call(begun)
                if type(came) is ReplyError:
                    raise pipe.trouble(came)
                decision = decider.answer(plan, costs, charge, ident, came)
            except StoreError as exc:
                came = exc
            else:
                if decision is not None:
                    return decision
            begun = decider.deciding(Request(plan, costs, charge, ident), came)
        elif plan.lease is not None and plan.lease.parts:
            return await self._ask_others(begun, plan, costs, deadline)
        steps: Steps[Decision] = begun  # type: ignore[assignment]
        deciding = run_awaited_within(steps, pipe, deadline)
        if not self._engine.health.connector.one_slot_per_call:
            return await deciding
        # On a cluster several hash slots may be charged, one after the other. If a later one denies the request, the
        # earlier ones get their charges back. If that stopped in between, some limits would stay charged.
        return await seen_through(deciding)

    async def _ask_others(self, begun: Begun, plan: LivePlan, costs: Costs, deadline: float) -> Decision:
        """
        Ask the store about the parts of a plan that have no permit, and return the decision on the whole.

        It goes on to the end even if the task is cancelled meanwhile, since a denial has to put permits back.
        """
        decider, pipe = self._decider, self._pipe
        decision, cancelled, late = None, None, None
        if not isinstance(begun, Generator):
            taken: Taken = begun  # type: ignore[assignment]
            came, cancelled = await reply_through(pipe, taken.command)
            try:
                if isinstance(came, StoreError):
                    raise came
                decision = decider.answer_others(plan, costs, taken, came)
            except StoreError as exc:
                came = exc
            begun = decider.deciding_others(plan, costs, taken, came)
        if decision is None:
            decided = await run_through(begun, pipe, lambda command: pipe.call_again(command, deadline))
            decision, late = decided
        if (cancelled or late) is not None:
            raise cancelled or late  # type: ignore[misc]
        return decision

    async def _run(self, steps: Steps[ResultT]) -> ResultT:
        """Send the commands that a generator yields to the store, each with a whole budget, and return its result."""
        return await run_awaited(steps, self._pipe, self._pipe.call)


def _renew(pipes: Iterable[AwaitedPipe]) -> None:
    """Have all next calls use new connections."""
    for pipe in pipes:
        pipe.renew()


def _limit_awaited(limiter: Limiter, function: CoroutineFunction[P, R], rule: Declaration) -> CoroutineFunction[P, R]:
    """
    Return a coroutine function that applies the limits and then calls *function*. Raises TypeError if it is not a
    coroutine function.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__}: must be a coroutine function. Use an enforcement.Limiter.")

    @wraps(function)
    async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        call = rule.call(args, kwargs)
        if call is None:
            return await function(*args, **kwargs)
        if not call.holds:
            await limiter.acquire(call.limits, call.key, call.costs, max_wait=rule.max_wait)
            return await function(*args, **kwargs)
        admission = await limiter.open_admission(call.limits, call.key, call.costs, max_wait=rule.max_wait)
        try:
            return await function(*args, **kwargs)
        finally:
            await admission.free_slots()

    setattr(limited, RULES, rule.rules)
    return limited


__all__ = ["Admission", "Limiter"]
