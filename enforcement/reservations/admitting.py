"""Admit requests that hold slots, or whose cost is known only later. The threads' limiter inherits this."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from enforcement.model.matching import Attributes
from enforcement.model.tokens import Anonymous
from enforcement.plan.binding import Limits
from enforcement.plan.commands import ResultT, Steps
from enforcement.plan.costs import Costs, own_costs
from enforcement.plan.decision import Decision, Denied
from enforcement.reservations.subject import ASK, Reserving, check_life, check_subject, is_no_token
from enforcement.run_steps import run_within
from enforcement.state.live_plan import LivePlan
from enforcement.state.reservation import HeldReservation, new_ident
from enforcement.store.connector import Pipe
from enforcement.waiting.queues import checked_wait
from enforcement.waiting.waiters import WaitingThread

if TYPE_CHECKING:
    from enforcement.metering.prices import Prices
    from enforcement.metering.reported import ReportedUsage, StreamReport
    from enforcement.plan.records import About

Event = TypeVar("Event")


class Admitting(Reserving):
    """Admits requests. :class:`enforcement.Limiter` decides them and looks up tokens."""

    _pipe: Pipe
    _lookup_pipe: Pipe

    def find_plan(self, token: object, attributes: Attributes | None) -> LivePlan | Decision:
        """Return the plan of a request with this token or without one, or the decision that refuses it."""
        raise NotImplementedError

    def decide(self, plan: LivePlan, costs: Costs, *, charge: bool = True, ident: str = "") -> Decision:
        """Decide a request by the counters of a plan, charge it unless *charge* is False, and return the decision."""
        raise NotImplementedError

    def _run(self, steps: Steps[ResultT]) -> ResultT:
        raise NotImplementedError

    def find_prices(self) -> Prices | None:
        """Return the published prices, or None if they cannot be had now."""
        raise NotImplementedError

    @contextmanager
    def admit(
        self,
        token: str | Anonymous | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
        *,
        max_wait: float = 0.0,
    ) -> Generator[Admission]:
        """
        Charge an estimate, yield the admission, and hold its slots while a block runs.

        The slots are freed when the block ends. If it ends with an exception before :meth:`Admission.settle`, the
        estimate is given back too.

        Args:
            token: As in :meth:`check`, or limits in code together with *key*.
            key: As in :meth:`hit`. None with a token.
            costs: The estimate, as in :meth:`check`.
            attributes: As in :meth:`check`. None with limits in code.
            max_wait: Seconds to wait at most for permits and slots, as in :meth:`acquire`. 0: do not wait.
        Raises:
            Denied: The request does not pass. The block is not entered and nothing was charged.
            ValueError: As in :meth:`check` and :meth:`hit`, or *max_wait* is not a number of seconds.
            TypeError: A token is given with a *key*, or limits in code are given with *attributes*.
        """
        admission = self.open_admission(token, key, costs, attributes, max_wait=max_wait)
        try:
            yield admission
        except BaseException:
            admission.finish(None)
            raise
        else:
            admission.free_slots()

    def open_admission(
        self,
        token: str | Anonymous | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
        *,
        max_wait: float = 0.0,
    ) -> Admission:
        """
        Charge an estimate, and return an admission that holds slots until :meth:`Admission.finish`, or raise Denied.

        Use this if a ``with`` block cannot span the request. Arguments and errors are those of :meth:`admit`.
        """
        if type(max_wait) is not float or max_wait:
            return self._admit_in_turn(token, key, costs, attributes, checked_wait(max_wait))
        return self.admit_plan(self._plan_of(token, key, attributes), costs, attributes)

    def _admit_in_turn(
        self,
        token: str | Anonymous | Limits,
        key: str | None,
        costs: Costs,
        attributes: Attributes | None,
        max_wait: float,
    ) -> Admission:
        began, denial, made = monotonic(), None, []

        def ask() -> Decision:  # for a new plan each time, as the token may be revoked while it waits
            made.append(self.admit_plan(self._plan_of(token, key, attributes), costs, attributes))
            return made[0].decision

        plan, costs = self._plan_of(token, key, attributes), own_costs(costs)
        if not (self._is_behind(plan, costs) and max_wait):
            asking = object()
            plan.asking.add(asking)
            try:
                denial = _asked(ask)
            finally:
                plan.asking.discard(asking)
        if denial is None or not denial.allowed:
            self._wait(WaitingThread(plan.bounds, costs, began, began + max_wait), plan, denial, ask)
        return made[0]

    def _wait(
        self, waiter: WaitingThread, plan: LivePlan, denial: Decision | None, ask: Callable[[], Decision]
    ) -> Decision:
        """
        Ask for a request whenever it is its turn, and return the decision that admits it, or raise Denied.

        Args:
            denial: The denial of the request. None: it was not asked for yet, as others were waiting.
            ask: Has the request decided. It may raise Denied.
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
                    waiter.sleep(step)
                else:
                    decision = _asked(ask) if step is ASK else self.decide(plan, waiter.costs, charge=False)

    def reserve(
        self,
        token: str | Anonymous | Limits,
        key: str | None = None,
        costs: Costs = 1,
        attributes: Attributes | None = None,
        *,
        life: float,
    ) -> Admission:
        """
        Charge an estimate, and return an admission that any process can :meth:`settle` by its id, or raise Denied.

        For work that outlives a request or a process, such as a batch job. The store keeps the reservation, with its
        slots, until it is settled. After *life* it counts as lost: its slots are free, its charge stays, and it can
        still be settled until 7 days after it was made.

        Args:
            token: As in :meth:`admit`, which has the arguments up to *attributes*.
            life: Seconds until the reservation is lost, above 0 and at most 604,800.
        Returns:
            The admission. Its ``id`` is empty if no limit applies, as there is nothing to settle then.
        Raises:
            Denied: The request does not pass, or the store is unavailable (``degraded_denied``), or too many
                reservations of the project or token are open (``too_many_reservations``, ``too_many_of_token``).
                Nothing was charged.
            ValueError, TypeError: As in :meth:`admit`, or *life* is not such a number.
        """
        found = self._plan_of(token, key, attributes)
        plan = self._book.lasting(found, check_life(life))
        admission = self._recorded(plan, costs, attributes, life, {})
        found.last = plan.last or found.last
        if plan.bounds and not admission.id:
            admission.cancel()
            raise Denied(self._engine.planner.refusal("degraded_denied", plan.subject))
        return admission

    def settle(self, reservation_id: str, costs: Costs) -> bool:
        """
        Replace the estimate of a reservation by the real cost, and free its slots, and return whether it was open.

        On a cluster, limits of the global policy keep the estimate. Only :meth:`Admission.settle` reaches them.

        Args:
            reservation_id: The id of an admission, perhaps of another process.
            costs: As in :meth:`Admission.settle`.
        Returns:
            False if it was settled or released before, or was made more than 7 days ago. Nothing is changed then.
        Raises:
            ValueError: The id or the costs are not valid, or no limit in code counts them.
            enforcement.StoreError: The store is unavailable. The call may be repeated.
        """
        return bool(self._run(self._book.settling(reservation_id, costs)))

    def release(self, reservation_id: str) -> bool:
        """
        Give back what a reservation has charged, and free its slots, and return whether it was open. Arguments and
        errors are those of :meth:`settle`.

        The request of a metered reservation stays counted, because it was made.
        """
        return bool(self._run(self._book.releasing(reservation_id)))

    # Used by the integrations, which need the plan to choose between a hit and an admission.

    def admit_plan(
        self,
        plan: LivePlan,
        costs: Costs,
        attributes: Attributes | None,
        about: About | None = None,
    ) -> Admission:
        """
        Charge a plan that :meth:`find_plan` returned, and return a new admission, or raise Denied.

        Args:
            about: What a record in the store says, so that an operator can see and settle the reservation if this
                process dies, see :class:`~enforcement.plan.records.RecordedRequest`. None: no record is made.
        """
        if about is not None:
            return self._recorded(plan, costs, attributes, None, about)
        ident, costs = new_ident(), own_costs(costs)
        decision = self.decide(plan, costs, ident=ident)
        if not decision.allowed:
            raise Denied(self.noted(decision, attributes))
        admission = Admission(self, self._engine.reservation(plan, costs, decision, ident))
        self._engine.slots.keep(admission.reservation)
        return admission

    def _recorded(
        self,
        plan: LivePlan,
        costs: Costs,
        attributes: Attributes | None,
        life: float | None,
        about: About,
    ) -> Admission:
        request = self._book.request(plan, costs, life, about)
        pipe, budget = self._pipe, self._budget
        if life is not None:  # what is reserved for long may take as long as a look-up
            pipe, budget = self._lookup_pipe, self._engine.settings.lookup_seconds
        decision = run_within(self._book.deciding(request), pipe, budget)
        if not decision.allowed:
            raise Denied(self.noted(decision, attributes))
        admission = Admission(self, self._book.made(request, decision, prolongs=life is None))
        if life is None:
            self._engine.slots.keep(admission.reservation)
        return admission

    def _plan_of(self, token: str | Anonymous | Limits, key: str | None, attributes: Attributes | None) -> LivePlan:
        """Return the plan of a request, or raise Denied if its token is refused."""
        check_subject(token, key, attributes)
        if not isinstance(token, (str, Anonymous)) and not is_no_token(token, key):
            return self._plan_in_code(token, key)
        plan = self.find_plan(token, attributes)
        if isinstance(plan, Decision):
            raise Denied(plan)
        return plan


def _asked(ask: Callable[[], Decision]) -> Decision:
    """Return the decision that *ask* returns or raises."""
    try:
        return ask()
    except Denied as denied:
        return denied.decision


class Admission:
    """
    An admitted request, with the charges and slots that it holds until it ends.

    Attributes:
        decision: The decision that admitted it.
        reservation: The charges and slots.
    """

    _stream: tuple[StreamReport, str | None, Prices | None] | None = None

    def __init__(self, limiter: Admitting, reservation: HeldReservation) -> None:
        self.decision = reservation.decision
        self.reservation = reservation
        self._limiter = limiter
        self._finished = False

    @property
    def id(self) -> str:
        """The id by which any process can settle it, or empty if the store has no record of it."""
        return self.reservation.id

    def settle(self, costs: Costs | Mapping[str, int]) -> None:
        """
        Replace the charged estimate by the real cost, which may be higher or lower, once. Later calls change nothing.

        Args:
            costs: A number of requests, or a mapping of units to permits. A unit that is not in it keeps its estimate.
                0 is 0 of every unit.
        Raises:
            ValueError: The costs are not valid; the estimate is kept.
        """
        self._conclude(self.reservation.settling(costs))

    def settle_from(self, response: object, *, model: str | None = None, prices: Prices | None = None) -> ReportedUsage:
        """
        Replace the estimate by the tokens that a provider reports and what they cost, once, and return the report.

        Limits of tokens and money are settled, each by its weights and prices. Other limits keep their estimate, and so
        does money if the model has no price.

        Args:
            response: An object of the SDK of OpenAI, Anthropic or Google, or its JSON object as a mapping. It must be
                whole. Streams pass through :meth:`metered`.
            model: The model whose price counts. None: the one that the response names.
            prices: The prices. None: those that the control plane has published, which the first call waits for.
        Raises:
            ValueError: It is no such response, or reports no usage. The estimate is kept, also if the block ends by
                this error.
        """
        from enforcement.metering.reported import StreamReport  # most processes meter nothing

        # Until it is settled: the provider has answered, so an error from here on gives nothing back.
        self._stream = StreamReport(), model, prices
        report = self._stream[0].read_whole(response)
        self._settle_by(report, model, prices)
        self._stream = None
        return report

    def metered(
        self, stream: Iterable[Event], *, model: str | None = None, prices: Prices | None = None
    ) -> Iterator[Event]:
        """
        Return an iterator over the events of a stream, which settles the request by what they report.

        It is settled when the stream ends, when the iterator is closed, or when the admission ends before. A stream
        that broke off costs the input that was reported and the output that was seen. If its policy has a bound, or the
        model reasons, it costs no less than its estimate. One that reported nothing keeps its estimate. OpenAI's chat
        completions report only with ``stream_options={"include_usage": True}``.

        Args:
            stream: Events of an SDK, or JSON objects as mappings.
            model, prices: As in :meth:`settle_from`.
        Raises:
            TypeError: *stream* is not iterable.
        """
        from enforcement.metering.reported import StreamReport

        if not hasattr(stream, "__iter__"):
            raise TypeError(f"stream: must be an iterable of events, got {type(stream).__name__}.")
        self._stream = StreamReport(), model, prices
        return self._passing(stream, self._stream[0])

    def _passing(self, stream: Iterable[Event], seen: StreamReport) -> Iterator[Event]:
        try:
            for event in stream:
                seen.add(event)
                yield event
            seen.end()
        finally:
            self._settle_stream()

    def _settle_stream(self) -> None:
        """Settle the request by what its stream has reported so far, if it has one."""
        if self._stream is None:
            return
        (seen, model, prices), self._stream = self._stream, None
        report = seen.report()
        if report is not None:
            self._settle_by(report, model, prices, is_whole=seen.is_last_word)
        elif seen.has_begun and not self.reservation.concluded:
            from enforcement.reservations.reported import without_report

            without_report()
            self.settle(self.reservation.estimate)  # it may have cost as much, so it is not given back

    def _settle_by(
        self, report: ReportedUsage, model: str | None, prices: Prices | None, *, is_whole: bool = True
    ) -> None:
        from enforcement.reservations.reported import at_least_estimated, counts_money, reported_costs

        if prices is None and counts_money(self.decision):
            prices = self._limiter.find_prices()
        costs = reported_costs(self.decision, report, model, prices)
        if not is_whole and (self.reservation.is_bound or report.hides_output):
            costs = at_least_estimated(self.decision, costs, self.reservation.estimate)
        self.settle(costs or self.reservation.estimate)

    def charge_for(self, status: int) -> None:
        """Give back the permits of limits whose ``charge_on`` does not contain the HTTP status of the response."""
        self._conclude(self.reservation.charging_for(status))

    def cancel(self) -> None:
        """Give back all charges, unless they are settled, and free the slots."""
        self._conclude(self.reservation.cancelling())

    def finish(self, status: int | None) -> None:
        """
        Correct the charges by the status of the response, or give back all for None, and free the slots, once.

        If the request was settled before, only the slots are freed. An unavailable store raises no error, because the
        changes are sent to it later.

        Args:
            status: The HTTP status. None if there is no response. Everything is then given back, as by :meth:`cancel`.
        """
        if self._finished:
            return
        self._finished = True
        if self._stream is not None:
            self._settle_stream()
        try:
            self._conclude(self.reservation.finishing(status))
        finally:
            self.free_slots()

    def conclude(self, costs: Costs | None = None, *, is_last_word: bool = True) -> None:
        """
        Settle the request and free its slots, in one call to the store if it has recorded the reservation.

        Args:
            costs: As in :meth:`settle`. None: the estimate is kept.
            is_last_word: Whether nobody will know the cost better. Otherwise a reservation that is lost keeps its
                charge, and can be settled by an operator.
        Raises:
            ValueError: The costs are not valid. Nothing is changed.
        """
        self._conclude(self.reservation.concluding(costs, is_last_word=is_last_word))

    def _conclude(self, steps: Steps[object]) -> None:
        self._limiter._run(steps)
        self._limiter._engine.slots.concluded(self.reservation)

    def free_slots(self) -> None:
        """Free the slots. What was charged can still be settled."""
        self._limiter._engine.slots.drop(self.reservation)
        self._limiter._run(self.reservation.leaving())
