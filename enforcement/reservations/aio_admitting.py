"""Admit requests that hold slots, or whose cost is known only later. The limiter for asyncio inherits this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, closing
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from enforcement.async_tasks import begun, seen_through
from enforcement.model.matching import Attributes
from enforcement.model.tokens import Anonymous
from enforcement.plan.binding import Limits
from enforcement.plan.commands import ResultT, Steps
from enforcement.plan.costs import Costs, own_costs
from enforcement.plan.decision import Decision, Denied
from enforcement.reservations.subject import ASK, Reserving, check_life, check_subject, is_no_token
from enforcement.run_steps import Unwaited, reply_through, run_through
from enforcement.state.live_plan import LivePlan
from enforcement.state.reservation import HeldReservation, new_ident
from enforcement.store.connector import AwaitedPipe
from enforcement.waiting.queues import checked_wait
from enforcement.waiting.waiters import WaitingTask

if TYPE_CHECKING:
    from enforcement.metering.prices import Prices
    from enforcement.metering.reported import ReportedUsage, StreamReport
    from enforcement.plan.records import About

Event = TypeVar("Event")


class AwaitedAdmitting(Reserving):
    """Admits requests. :class:`enforcement.aio.Limiter` decides them and looks up tokens."""

    _pipe: AwaitedPipe
    _lookup_pipe: AwaitedPipe

    async def find_plan(self, token: object, attributes: Attributes | None) -> LivePlan | Decision:
        """Return the plan of a request with this token, or the decision that refuses the token."""
        raise NotImplementedError

    async def decide(self, plan: LivePlan, costs: Costs, *, charge: bool = True, ident: str = "") -> Decision:
        """Decide a request by the counters of a plan, charge it unless *charge* is False, and return the decision."""
        raise NotImplementedError

    async def _run(self, steps: Steps[ResultT]) -> ResultT:
        raise NotImplementedError

    async def find_prices(self) -> Prices | None:
        """Return the published prices, or None if they cannot be had now."""
        raise NotImplementedError

    @asynccontextmanager
    async def admit(
        self,
        token: str | Anonymous | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
        *,
        max_wait: float = 0.0,
    ) -> AsyncGenerator[Admission]:
        """
        Charge an estimate, yield the admission, and hold its slots while a block runs, as the sync limiter does.

        If the task is cancelled inside the block, everything is given back before the cancellation goes on.
        """
        admission = await self.open_admission(token, key, costs, attributes, max_wait=max_wait)
        try:
            yield admission
        except BaseException:
            await admission.finish(None)
            raise
        else:
            await admission.free_slots()

    async def open_admission(
        self,
        token: str | Anonymous | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
        *,
        max_wait: float = 0.0,
    ) -> Admission:
        """
        Charge an estimate, and return a new admission, which holds slots until :meth:`Admission.finish`, or raise
        Denied. See the sync limiter.
        """
        if type(max_wait) is not float or max_wait:
            return await self._admit_in_turn(token, key, costs, attributes, checked_wait(max_wait))
        return await self.admit_plan(await self._plan_of(token, key, attributes), costs, attributes)

    async def _admit_in_turn(
        self,
        token: str | Anonymous | Limits,
        key: str | None,
        costs: Costs,
        attributes: Attributes | None,
        max_wait: float,
    ) -> Admission:
        began, denial, made = monotonic(), None, []

        async def ask() -> Decision:  # for a new plan each time, as the token may be revoked while it waits
            made.append(await self.admit_plan(await self._plan_of(token, key, attributes), costs, attributes))
            return made[0].decision

        plan, costs = await self._plan_of(token, key, attributes), own_costs(costs)
        if not (self._is_behind(plan, costs) and max_wait):
            asking = object()
            plan.asking.add(asking)
            try:
                denial = await _asked(ask)
            finally:
                plan.asking.discard(asking)
        if denial is None or not denial.allowed:
            await self._wait(self._waiter(plan, costs, began, began + max_wait), plan, denial, ask)
        return made[0]

    def _waiter(self, plan: LivePlan, costs: Costs, began: float, until: float) -> WaitingTask:
        one_call = not self._engine.health.connector.one_slot_per_call
        return WaitingTask(plan.bounds, costs, began, until, self._pipe if one_call else None)

    async def _wait(
        self, waiter: WaitingTask, plan: LivePlan, denial: Decision | None, ask: Callable[[], Awaitable[Decision]]
    ) -> Decision:
        """
        Ask for a request whenever it is its turn, and return the decision that admits it, or raise Denied. See the sync
        limiter.
        """
        decision = None
        with closing(self._waiting(waiter, plan, denial)) as steps:
            while True:
                try:
                    step = steps.send(decision)
                except StopIteration:
                    assert decision is not None
                    return decision
                decision = None
                if isinstance(step, float):
                    await waiter.sleep(step)
                else:
                    decision = await (_asked(ask) if step is ASK else self.decide(plan, waiter.costs, charge=False))

    async def reserve(
        self,
        token: str | Anonymous | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
        *,
        life: float,
    ) -> Admission:
        """
        Charge an estimate, and return an admission that any process can :meth:`settle` by its id, or raise Denied. See
        the sync limiter.
        """
        found = await self._plan_of(token, key, attributes)
        plan = self._book.lasting(found, check_life(life))
        admission = await self._recorded(plan, costs, attributes, life, {})
        found.last = plan.last or found.last
        if plan.bounds and not admission.id:
            await admission.cancel()
            raise Denied(self._engine.planner.refusal("degraded_denied", plan.subject))
        return admission

    async def settle(self, reservation_id: str, costs: Costs) -> bool:
        """
        Replace the estimate of a reservation by the real cost, and free its slots, and return whether it was open. See
        the sync limiter.
        """
        return bool(await seen_through(self._run(self._book.settling(reservation_id, costs))))

    async def release(self, reservation_id: str) -> bool:
        """
        Give back what a reservation has charged, and free its slots, and return whether it was open. See the sync
        limiter.
        """
        return bool(await seen_through(self._run(self._book.releasing(reservation_id))))

    # Used by the integrations, which need the plan to choose between a hit and an admission.

    def admit_plan(
        self,
        plan: LivePlan,
        costs: Costs,
        attributes: Attributes | None,
        about: About | None = None,
    ) -> Coroutine[object, None, Admission]:
        """
        Charge a plan that :meth:`find_plan` returned, and return a new admission, or raise Denied. See the sync
        limiter.
        """
        if about is not None:
            return self._recorded(plan, costs, attributes, None, about)
        return self._unrecorded(plan, costs, attributes)

    async def _unrecorded(self, plan: LivePlan, costs: Costs, attributes: Attributes | None) -> Admission:
        ident, costs = new_ident(), own_costs(costs)

        def reserved(decision: Decision) -> HeldReservation:
            return self._engine.reservation(plan, costs, decision, ident)

        admission = await self._admitted(self.decide(plan, costs, ident=ident), reserved, attributes)
        self._engine.slots.keep(admission.reservation)
        return admission

    async def _recorded(
        self,
        plan: LivePlan,
        costs: Costs,
        attributes: Attributes | None,
        life: float | None,
        about: About,
    ) -> Admission:
        book = self._book
        prolongs = life is None
        request = book.request(plan, costs, life, about)
        pipe, budget = self._pipe, self._budget
        if not prolongs:  # what is reserved for long may take as long as a look-up
            pipe, budget = self._lookup_pipe, self._engine.settings.lookup_seconds
        deadline, cancelled = monotonic() + budget, None
        found: object = book.begin(request) if prolongs else None
        if type(found) is bytes:
            came, cancelled = await reply_through(pipe, found)
            found = book.answered(request, came)
        if isinstance(found, Decision):
            decision = found
        else:
            steps = book.deciding(request, found)
            decision, gone = await run_through(steps, pipe, lambda command: pipe.call_again(command, deadline))
            cancelled = gone or cancelled
        if cancelled is not None:
            if decision.allowed:
                await seen_through(self._run(book.made(request, decision, prolongs=prolongs).cancelling()))
            raise cancelled
        if not decision.allowed:
            raise Denied(self.noted(decision, attributes))
        admission = Admission(self, book.made(request, decision, prolongs=prolongs))
        if prolongs:
            self._engine.slots.keep(admission.reservation)
        return admission

    async def _admitted(
        self,
        deciding: Awaitable[Decision],
        reserved: Callable[[Decision], HeldReservation],
        attributes: Attributes | None,
    ) -> Admission:
        """
        Return a new admission for a decision, or raise Denied. If the task is cancelled meanwhile, give back what the
        store may have charged.
        """
        deciding = asyncio.ensure_future(deciding)
        try:
            decision = await asyncio.shield(deciding)
        except asyncio.CancelledError:
            await seen_through(self._give_back(deciding, reserved))
            raise
        if not decision.allowed:
            raise Denied(self.noted(decision, attributes))
        return Admission(self, reserved(decision))

    async def _give_back(self, deciding: Awaitable[Decision], reserved: Callable[[Decision], HeldReservation]) -> None:
        """Wait for a decision whose caller was cancelled, and give back the permits that it charged."""
        decision = await deciding
        if decision.allowed:
            await self._run(reserved(decision).cancelling())

    async def _plan_of(
        self, token: str | Anonymous | Limits, key: str | None, attributes: Attributes | None
    ) -> LivePlan:
        """Return the plan of a request, or raise Denied if its token is refused."""
        check_subject(token, key, attributes)
        if not isinstance(token, (str, Anonymous)) and not is_no_token(token, key):
            return self._plan_in_code(token, key)
        plan = await self.find_plan(token, attributes)
        if isinstance(plan, Decision):
            raise Denied(plan)
        return plan


async def _asked(ask: Callable[[], Awaitable[Decision]]) -> Decision:
    """Return the decision that *ask* returns or raises."""
    try:
        return await ask()
    except Denied as denied:
        return denied.decision


class Admission:
    """An admitted request, with the charges and slots that it holds. See :class:`enforcement.limiter.Admission`."""

    _stream: tuple[StreamReport, str | None, Prices | None] | None = None

    def __init__(self, limiter: AwaitedAdmitting, reservation: HeldReservation) -> None:
        self.decision = reservation.decision
        self.reservation = reservation
        self._limiter = limiter
        # A second call waits for the task of the first one.
        self._finishing: asyncio.Task[None] | None = None
        self._freeing: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """The id by which any process can settle it, or empty if the store has no record of it."""
        return self.reservation.id

    async def settle(self, costs: Costs) -> None:
        """Replace the charged estimate by the real cost, once. Later calls change nothing."""
        await seen_through(self._conclude(self.reservation.settling(costs)))

    async def settle_from(
        self, response: object, *, model: str | None = None, prices: Prices | None = None
    ) -> ReportedUsage:
        """
        Replace the estimate by the tokens that a provider reports and what they cost, once, and return the report. See
        the sync limiter.
        """
        from enforcement.metering.reported import StreamReport  # most processes meter nothing

        # Until it is settled: the provider has answered, so an error from here on gives nothing back.
        self._stream = StreamReport(), model, prices
        report = self._stream[0].read_whole(response)
        await self._settle_by(report, model, prices)
        self._stream = None
        return report

    def metered(
        self, stream: AsyncIterable[Event], *, model: str | None = None, prices: Prices | None = None
    ) -> AsyncIterator[Event]:
        """
        Return an asynchronous iterator over the events of a stream, which settles the request by what they report. See
        the sync limiter.
        """
        from enforcement.metering.reported import StreamReport

        if not hasattr(stream, "__aiter__"):
            raise TypeError(f"stream: must be an asynchronous iterable of events, got {type(stream).__name__}.")
        self._stream = StreamReport(), model, prices
        return self._passing(stream, self._stream[0])

    async def _passing(self, stream: AsyncIterable[Event], seen: StreamReport) -> AsyncIterator[Event]:
        try:
            async for event in stream:
                seen.add(event)
                yield event
            seen.end()
        finally:
            await self._settle_stream()

    async def _settle_stream(self) -> None:
        """Settle the request by what its stream has reported so far, if it has one."""
        if self._stream is None:
            return
        (seen, model, prices), self._stream = self._stream, None
        report = seen.report()
        if report is not None:
            await self._settle_by(report, model, prices, is_whole=seen.is_last_word)
        elif seen.has_begun and not self.reservation.concluded:
            from enforcement.reservations.reported import without_report

            without_report()
            await self.settle(self.reservation.estimate)  # it may have cost as much, so it is not given back

    async def _settle_by(
        self, report: ReportedUsage, model: str | None, prices: Prices | None, *, is_whole: bool = True
    ) -> None:
        from enforcement.reservations.reported import at_least_estimated, counts_money, reported_costs

        if prices is None and counts_money(self.decision):
            prices = await self._limiter.find_prices()
        costs = reported_costs(self.decision, report, model, prices)
        if not is_whole and (self.reservation.is_bound or report.hides_output):
            costs = at_least_estimated(self.decision, costs, self.reservation.estimate)
        await self.settle(costs or self.reservation.estimate)

    async def amend(self, deltas: Mapping[str, int]) -> None:
        """Add permits to the charges by unit, or give some back below 0, whether that fits or not, once."""
        await seen_through(self._conclude(self.reservation.amending(deltas)))

    async def charge_for(self, status: int) -> None:
        """Give back the permits of limits whose ``charge_on`` does not contain the HTTP status of the response."""
        await seen_through(self._conclude(self.reservation.charging_for(status)))

    async def cancel(self) -> None:
        """Give back all charges, unless they are settled, and free the slots."""
        await seen_through(self._conclude(self.reservation.cancelling()))

    async def conclude(self, costs: Costs | None = None, *, is_last_word: bool = True) -> None:
        """
        Settle the request, or keep the estimate for None, and free its slots, in one call to the store if it has
        recorded the reservation.

        Args:
            is_last_word: Whether nobody will know the cost better. Otherwise a reservation that is lost keeps its
                charge, and can be settled by an operator.
        """
        pipe = self._limiter._pipe
        _, cancelled = await run_through(self.reservation.concluding(costs, is_last_word=is_last_word), pipe, pipe.call)
        self._limiter._engine.slots.concluded(self.reservation)
        if cancelled is not None:
            raise cancelled

    def conclude_soon(
        self, costs: Costs, replies: set[asyncio.Future[object]], over: Callable[[], None], *, is_last_word: bool
    ) -> None:
        """
        Settle the request as :meth:`conclude` does, without waiting for the store. The command is sent in the next turn
        of the event loop.

        Args:
            replies: Has the reply of the store until that has come.
            over: Called when the request is settled, or when this process owes that to the store.
        """

        def concluded() -> None:
            self._limiter._engine.slots.concluded(self.reservation)
            over()

        steps = self.reservation.concluding(costs, is_last_word=is_last_word)
        Unwaited(steps, self._limiter._pipe, replies, concluded).begin()

    async def _conclude(self, steps: Steps[object]) -> None:
        await self._limiter._run(steps)
        self._limiter._engine.slots.concluded(self.reservation)

    async def finish(self, status: int | None) -> None:
        """
        Correct the charges by the status of the response, or give back all for None, and free the slots, once.

        The work runs to its end even if the task that awaits it is cancelled.
        """
        if self._finishing is None and self._stream is not None:
            await seen_through(self._settle_stream())
        self._finishing = self._finishing or begun(self._finish(status))
        await asyncio.shield(self._finishing)

    async def free_slots(self) -> None:
        """Free the slots. What was charged can still be settled."""
        self._freeing = self._freeing or begun(self._free_slots())
        await asyncio.shield(self._freeing)

    async def _finish(self, status: int | None) -> None:
        try:
            await self._conclude(self.reservation.finishing(status))
        finally:
            await self.free_slots()

    async def _free_slots(self) -> None:
        self._limiter._engine.slots.drop(self.reservation)
        await self._limiter._run(self.reservation.leaving())
