"""
Decide requests.

A decision is made from what this process holds (a lease, a cached denial), by the store, or by this process alone while
the store is unavailable.

Work that needs several calls to the store is a generator of *steps*. It yields encoded commands. The limiter sends each
to the store, and sends the reply into the generator or throws a StoreError into it. The synchronous and the asyncio
limiter run the same generators, so that no flow is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Final

from enforcement.engine.asking import AWAY, NOT_ASKED, NOT_RESTORED, Asker, StoreAnswer
from enforcement.failover.health import Health
from enforcement.leases.manager import LeaseKeeper
from enforcement.model.partitions import TRUST_SECONDS
from enforcement.plan import commands
from enforcement.plan.commands import Steps
from enforcement.plan.costs import REQUESTS, Costs
from enforcement.plan.decision import Decision
from enforcement.plan.reply import MARKED, PLAIN, Reply, read
from enforcement.plan.request import Request
from enforcement.state.counts import DecisionCounts
from enforcement.state.denial_cache import Denials
from enforcement.state.lease import Lease
from enforcement.state.live_plan import LivePlan, PartLeases
from enforcement.state.parts import MARKS, marks_of
from enforcement.state.planner import Planner
from enforcement.store import resp
from enforcement.store.resp import numbers
from enforcement.usage.counts import states_of

TOKEN_TRUST_SECONDS: Final = 600.0
"""How long tokens are accepted while the store cannot confirm the documents. One may have been revoked meanwhile."""

if TYPE_CHECKING:
    from enforcement.engine.parts import PartDecider, Taken, Verdict

    Begun = Decision | bytes | Taken | Steps[Decision]


class Decider:
    """
    Decides the requests of one process.

    Args:
        planner: Finds the plan of a request.
        denials: The cached denials.
        health: Knows whether the store is available, and decides without it.
        leases: Fills leases.
        counts: Counts decisions by source and reason.
        unconfirmed_for: Returns for how many seconds the store has not confirmed the documents in use.

    Attributes:
        fallbacks: Number of decisions that this process made without the store.
    """

    def __init__(
        self,
        planner: Planner,
        denials: Denials,
        health: Health,
        leases: LeaseKeeper,
        counts: DecisionCounts,
        *,
        unconfirmed_for: Callable[[], float],
    ) -> None:
        self.fallbacks = 0
        self._planner = planner
        self._denials = denials
        self._known = denials.known
        self._health = health
        self._breaker = health.breaker
        self._gate = health.connector.gate
        self._parts_calls = health.connector.one_slot_per_call
        self._lost = health.lost_counters
        self._fallback = health.fallback
        self._leases = leases
        self._counts = counts
        self._admitted = counts.cell("store", "ok")
        self._unconfirmed_for = unconfirmed_for
        self._clock = health.clock is not None
        self._asker = Asker(health)

    @cached_property
    def _parts(self) -> PartDecider:
        from enforcement.engine.parts import PartDecider  # many processes have no plan that needs it

        return PartDecider(self._asker, self._health, self._leases)

    def begin(self, plan: LivePlan, costs: Costs, charge: bool, ident: str) -> Begun:
        """
        Return the decision if no call is needed, else the encoded command to send, or steps if that is not enough.

        Returns:
            The decision, or the encoded command whose reply :meth:`answer` reads, or permits with the command whose
            reply :meth:`answer_others` reads. Or steps that must be run, and whose result is the decision.
        Raises:
            ValueError: The costs are not valid, or limits in code would not count them.
        """
        if type(costs) is not int or costs != 1:
            plan.check(costs)
        # Each is read once, since another thread may drop it.
        if (lease := plan.lease) is not None and charge and not ident:
            held = self.one_from_lease(plan) if costs == 1 else self._from_lease(plan, lease, costs)
            if held is not None:
                return held
            if lease.parts and (begun := self._begin_parts(plan, lease, costs)) is not None:
                return begun
        if plan.counts_no_requests:
            if not plan.bounds:
                return self._unlimited(plan, costs)
            plan.check(costs)
        if (denial := plan.denied) is not None and charge and (known := self._known(plan, denial, costs)) is not None:
            return known
        if self._gate.open:
            if not self._parts_calls:
                return self._fall_back(Request(plan, costs, charge, ident))
            if not plan.spread and self._health.is_away(plan.keys[0]):
                return self._fall_back(Request(plan, costs, charge, ident), AWAY)
        if self._lost.sets and plan.lies_in(self._lost.sets):
            return self._fall_back(Request(plan, costs, charge, ident), NOT_RESTORED)
        if (owed := self._fallback.owed) and not owed.keys().isdisjoint(plan.keys):
            return self.deciding(Request(plan, costs, charge, ident))
        if plan.unregistered and monotonic() >= plan.registered_until:
            return self.deciding(Request(plan, costs, charge, ident))
        command = plan.command
        if command is not None and charge and not ident and costs == 1:
            return command
        return self._command(plan, costs, charge, ident) or self.deciding(Request(plan, costs, charge, ident))

    def give_up(self, taken: Taken) -> None:
        """Put back the permits of a request that nobody decides any more."""
        self._parts.put_back(taken)

    def _begin_parts(
        self, plan: LivePlan, leases: PartLeases, costs: Costs
    ) -> Decision | Taken | Steps[Decision] | None:
        """
        Take permits for those parts of a plan that have some, and return the decision, or them with what decides the
        other parts.

        Returns:
            None if there is no permit, or if the whole plan must be decided anyway.
        """
        # The same for all that are leased, because they count requests.
        cost = costs if isinstance(costs, int) else costs.get(REQUESTS, 1)
        if (
            not cost
            or self._lost.sets
            or (self._fallback.owed and not self._fallback.owed.keys().isdisjoint(plan.keys))
        ):
            return None
        if plan.unregistered and monotonic() >= plan.registered_until:
            return None
        if (denial := plan.denied) is not None and (known := self._known(plan, denial, costs)) is not None:
            return known
        taken = self._parts.taking(plan, leases, cost)
        if taken is None:
            return None
        if taken.others is not None:
            others = taken.others.plan
            command = others.command if costs == 1 else None
            if (command := command or self._command(others, costs, True, marks_of(others))) is None:
                return self.deciding_others(plan, costs, taken)
            taken.command = command
            return taken
        reply = taken.reply(plan)
        self._leases.by_parts[0] += 1
        if plan.usage is not None:
            self._count(plan, costs, reply, True)
        return Decision(True, "ok", "lease", plan, reply)

    def answer_others(self, plan: LivePlan, costs: Costs, taken: Taken, raw: object) -> Decision | None:
        """
        Do what :meth:`answer` does, for the raw reply to the command of the parts without a permit.

        Returns:
            None if that is not enough, so that :meth:`deciding_others` must be run with the same reply.
        Raises:
            StoreError: The reply has the wrong format.
        """
        reply = self._parts.read(plan, taken, raw)
        return None if reply is None else self._decision(plan, costs, True, "", reply)

    def deciding_others(self, plan: LivePlan, costs: Costs, taken: Taken, result: object = None) -> Steps[Decision]:
        """
        Yield the commands that decide the parts of a plan without a permit, and return the decision on the whole.

        Args:
            result: The reply to the command of the permits, or the StoreError that it raised. None if there is none.
        """
        request = Request(plan, costs)
        verdict = yield from self._parts.asking(request, registers=False, taken=taken, result=result)
        return self._judged(request, verdict)

    def _command(self, plan: LivePlan, costs: Costs, charge: bool, ident: str) -> bytes | None:
        """
        Return the encoded command that decides a request, or None if its counters need several, and keep that of cost
        1. A plan has all its requests with :data:`~enforcement.state.parts.MARKS` or none.

        Returns:
            None if the counters lie in several slots of a cluster, so that one command is not enough.
        """
        health = self._health
        if plan.spread and self._parts_calls:
            return None
        now_us = health.now_us() if plan.follows_calendar or self._clock else 0
        if not charge or costs != 1 or self._clock or (ident and ident != MARKS):
            return commands.decide(Request(plan, costs, charge, ident), now_us, clock=self._clock)
        if (prepared := plan.once(now_us)) is not None:
            return prepared
        specs = plan.specs(now_us)
        command = commands.decide(Request(plan, 1, ident=ident), now_us, clock=False)
        plan.keep_once(command, specs)
        return command

    def answer(self, plan: LivePlan, costs: Costs, charge: bool, ident: str, raw: object) -> Decision | None:
        """
        Return a new decision from a raw reply, counted if it was to charge, or None if the store did not decide.

        Args:
            raw: The store's reply to the command of :meth:`begin`, which was called with the other arguments.
        Returns:
            None if the store made no decision, so that :meth:`deciding` must be run with the same reply.
        Raises:
            StoreError: The reply has the wrong format.
        """
        found, width = numbers(raw), MARKED if ident else PLAIN
        if len(found) == 2 + width * len(plan.bounds) and found[0] >= 0:
            reply = Reply(found, width)
            plan.heard(reply)
            return self._decision(plan, costs, charge, ident, reply)
        read(raw, len(plan.bounds), width)  # raises StoreError, unless the store made no decision
        return None

    def _decision(self, plan: LivePlan, costs: Costs, charge: bool, ident: str, reply: Reply) -> Decision:
        """
        Return a new decision from a reply of the store, and count it if it was to charge.
        """
        if self._breaker.failures:
            self._breaker.succeeded()
        passed = reply.numbers[0] == 1
        if passed:
            decision = Decision(True, "ok", "store", plan, reply)
            if charge:
                self._admitted[0] += 1
        else:
            if plan.follows_calendar:
                reply = reply.rolled(plan.bounds, costs)
            decision = Decision(False, reply.reason(plan.bounds), "store", plan, reply)
            if charge:
                self._denials.add(plan, costs, decision, remembers=not ident and not self._clock)
        if plan.counts_units and decision.on(costs).unmetered_at():
            self._planner.unmetered.note(plan, decision)
        if charge and plan.usage is not None:
            self._count(plan, costs, reply, passed)
        return decision

    def _count(self, plan: LivePlan, costs: Costs, reply: Reply, passed: bool) -> None:
        usage = plan.usage
        assert usage is not None
        minute = reply.numbers[1] // 60_000_000
        if passed and costs == 1 and not plan.has_shadows:
            usage.passed(minute, 1, plan.ones)
            return
        requests = costs if isinstance(costs, int) else costs.get("requests", 1)
        if passed and not any(reply.waits()):
            usage.passed(minute, requests, tuple([(bound.index, bound.cost_of(costs)) for bound in plan.bounds]))
            return
        usage.decided(minute, passed, requests if passed else 0, states_of(plan.bounds, costs, reply, passed))

    def _from_lease(self, plan: LivePlan, lease: Lease[LivePlan] | PartLeases, costs: Costs) -> Decision | None:
        """
        Take leased permits for a request of another cost than 1, and return the decision that allows it, or None.

        Returns:
            None if the lease has too few permits, so that the store must decide.
        """
        if type(costs) is not int:
            return None
        left = lease.take(costs)
        if left <= lease.low and not lease.asking and lease.steady():
            self._leases.ask(lease)
        if left < 0:
            return None
        if plan.usage is not None:
            plan.usage.passed(lease.reply.minute, costs, tuple((bound.index, costs) for bound in plan.bounds))
        return Decision(True, "ok", "lease", plan, lease.reply, left)

    def one_from_lease(self, plan: LivePlan) -> Decision | None:
        """
        Take a leased permit for a request of cost 1, and return the decision that allows it, or None if there is no
        permit.

        Returns:
            None if the plan has no lease or no permit is left, so that the store must decide.
        """
        lease = plan.lease
        if lease is None:
            return None
        left = lease.take(1)
        if left <= lease.low and not lease.asking and lease.steady():
            self._leases.ask(lease)
        return None if left < 0 else Decision(True, "ok", "lease", plan, lease.reply, left)

    def refused(self, decision: Decision) -> Decision:
        """Count and return a denial for which no counter was read."""
        self._denials.count(decision)
        return decision

    def behind(self, plan: LivePlan, costs: Costs, looked: Decision, waits: Mapping[str, int]) -> Decision:
        """
        Count and return the denial of a request whose time is over before those who came earlier were admitted.

        Args:
            looked: The decision on it that charged nothing.
            waits: In how many microseconds a permit can be there, by the key of each counter for which it has waited.
        """
        decision = looked
        if looked.allowed:
            reply = looked.reply.held_up({i: waits[b.key] for i, b in enumerate(looked.bounds) if b.key in waits})
            decision = Decision(False, "limited", looked.source, looked.plan, reply)
        self._denials.count(decision)
        if plan.usage is not None:
            self._count(plan, costs, decision.reply, False)
        return decision

    def _unlimited(self, plan: LivePlan, costs: Costs) -> Decision:
        """
        Count and return a new decision on a request without limits, a denial if the store is away and the documents are
        too old.
        """
        if self._health.connector.is_open() and self._distrusts(plan):
            return self.refused(self._planner.refusal("degraded_denied"))
        reply = Reply((1, self._health.now_us()))
        self._counts.count("documents", "ok")
        if plan.usage is not None:
            self._count(plan, costs, reply, True)
        return Decision(True, "ok", "documents", plan, reply)

    def resetting(self, plan: LivePlan) -> Steps[None]:
        """
        Yield the commands that delete the counters of a plan, and drop what this process knows of these counters.

        Raises:
            StoreError: The store cannot be reached, or refused a command.
        """
        if not plan.bounds:
            return  # limits in code are switched off
        # Permits leased before the reset must not be handed out or returned after it.
        yield from self._leases.returning(plan.keys)
        for group in self._health.connector.groups(plan.bounds, lambda bound: bound.tag):
            yield from self._asker.calling(resp.pack(commands.reset([bound.key for bound in group])))
        plan.last = None
        self._health.replies.reset(plan.keys, self._health.now_us())
        self._health.fallback.forget(plan.keys)
        self._denials.forget(plan.keys)

    def decided_here(self, request: Request[LivePlan]) -> Decision | None:
        """
        Return the decision on a request that must not use a lease, if no call to the store is needed or possible.

        Returns:
            None if :meth:`deciding` must be run.
        Raises:
            ValueError: As for :meth:`begin`.
        """
        plan, costs = request.plan, request.costs
        plan.check(costs)
        if not plan.bounds:
            return self._unlimited(plan, costs)
        if (denial := plan.denied) is not None and (known := self._known(plan, denial, costs)) is not None:
            return known
        if self._gate.open:
            if not self._parts_calls:
                return self._fall_back(request)
            if not plan.spread and self._health.is_away(plan.keys[0]):
                return self._fall_back(request, AWAY)
        if self._lost.sets and plan.lies_in(self._lost.sets):
            return self._fall_back(request, NOT_RESTORED)
        return None

    # Decisions that take several calls.

    def deciding(self, request: Request[LivePlan], result: object = None) -> Steps[Decision]:
        """
        Yield the commands that decide a request, and return the decision of the store, or of this process without it.

        Args:
            result: The reply to the command of :meth:`begin`, or the StoreError that it raised. None if no command was
                sent.
        """
        plan, began = request.plan, monotonic()
        registers = result is None and request.charge and bool(plan.unregistered) and began >= plan.registered_until
        unpaid = (yield from self._asker.paying(plan)) if self._fallback.owed and result is None else None
        if plan.spread and self._parts_calls:
            verdict = yield from self._parts.asking(request, registers=registers)
            if registers:
                trusts = verdict.reply.passed and verdict.by_store
                request = self._registered(request, verdict.overflowed, began if trusts else None)
            if verdict.by_store:
                request.plan.heard(verdict.reply)
            return self._judged(request, verdict)
        answer = unpaid or (yield from self._asker.asking(request, registers=registers, result=result))
        if answer.reply is None:
            return self._fall_back(request, answer)
        if registers:
            request = self._registered(request, answer.overflowed, began if answer.reply.passed else None)
        request.plan.heard(answer.reply)
        return self._decision(request.plan, request.costs, request.charge, request.ident, answer.reply)

    def _judged(self, request: Request[LivePlan], verdict: Verdict) -> Decision:
        """Return a new decision on a request that was decided in several slots, counted if it was to charge."""
        if verdict.by_store:
            return self._decision(request.plan, request.costs, request.charge, request.ident, verdict.reply)
        decision = self._degraded(request, verdict.reply, verdict.reason)
        if verdict.errors:
            decision.after(verdict.errors[0].cause, ambiguous=any(error.executed for error in verdict.errors))
        return decision

    def _registered(
        self, request: Request[LivePlan], overflowed: Sequence[int], began: float | None
    ) -> Request[LivePlan]:
        """
        Return a copy of the request with the plan of the counters that were used, and keep that plan for a while if the
        store registered the values.

        Args:
            overflowed: For each unregistered value, 1 if its overflow counter was used, 0 if its own was.
            began: When the values were registered, monotonic seconds. None if the store did not register them.
        """
        plan = self._planner.registered(request.plan, overflowed)
        if began is not None:
            self._planner.plan_cache.trust(plan, began + TRUST_SECONDS)
        return request.over(plan)

    # Decisions without the store.

    def _fall_back(self, request: Request[LivePlan], answer: StoreAnswer = NOT_ASKED) -> Decision:
        """
        Decide a request in this process, count the decision as a fallback, and return it.

        Args:
            answer: Why the store made no decision.
        """
        plan, error = request.plan, answer.error
        if self._distrusts(plan):
            self.fallbacks += 1
            decision = self.refused(self._planner.refusal("degraded_denied"))
        else:
            if plan.unregistered and not plan.registered_until:
                plan = self._planner.registered(plan, self._health.fallback.overflowed(plan))
                request = request.over(plan)
            known = self._health.replies.about(plan)
            decision = self._degraded(request, *self._health.decide_alone(request, known, error))
        if answer.cause:
            decision.after(answer.cause, ambiguous=error is not None and error.executed)
        return decision

    def _degraded(self, request: Request[LivePlan], reply: Reply, reason: str) -> Decision:
        """Return a new decision that this process made for some counters or all, and count it as a fallback."""
        plan = request.plan
        self.fallbacks += 1
        decision = Decision(reply.passed, reason, "fallback", plan, reply)
        if plan.counts_units:
            decision.on(request.costs)
        if request.charge:
            if decision.allowed:
                self._counts.count("fallback", reason)
            else:
                self._denials.count(decision)
            if plan.usage is not None:
                self._count(plan, request.costs, reply, reply.passed)
        return decision

    def _distrusts(self, plan: LivePlan) -> bool:
        """Return whether the documents behind a plan are too old to be used. Limits in code depend on none."""
        return plan.usage is not None and self._unconfirmed_for() > TOKEN_TRUST_SECONDS
