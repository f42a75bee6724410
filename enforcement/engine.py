"""
What both limiters share, without I/O of its own: making decisions, failing over, and coming back.

What each part knows stands beside it: plans (:mod:`enforcement.planner`), denials, leases, the fallback and what it
owes (:mod:`enforcement.debts`). Whatever takes more than one call to the store is written once, as a generator of
*steps*: it yields encoded commands and is sent their replies, or thrown a StoreTrouble. Both limiters drive them in the
same few lines.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from time import monotonic
from typing import Any, Final

from enforcement import errors, parts, protocol, resp
from enforcement.agent import Agent, Identity
from enforcement.census import TRUST_SECONDS
from enforcement.debts import Payer
from enforcement.decision import Decision
from enforcement.denials import Denials
from enforcement.errors import LibraryMissing, StoreTrouble
from enforcement.failover import Fallback
from enforcement.keys import Keys
from enforcement.lease_keeper import LeaseKeeper
from enforcement.leases import Lease
from enforcement.lua import library_source
from enforcement.parts import InParts
from enforcement.place import IsReady, place_of
from enforcement.planner import Planner
from enforcement.plans import Bound, Costs, Plan
from enforcement.protocol import without_marks
from enforcement.reservation import Reservation
from enforcement.settings import Settings, library_version
from enforcement.slot_keeper import SlotKeeper
from enforcement.snapshot import Documents
from enforcement.tally import Tally
from enforcement.trial import Trial
from enforcement.unrestored import Unrestored
from enforcement.usage import TokenUsage, UsageLog, states_of

Steps = Generator[bytes, Any, Any]

TOKEN_TRUST_SECONDS: Final = 600.0
"""How long tokens are good without a word from the store: it alone would say that one was revoked meanwhile."""
BACKGROUND_BUDGET: Final = 1.0
STOP_SECONDS: Final = 2.0


class Engine:
    """One process' enforcement: documents, plans, breaker, fallback, usage, and the thread that tends them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = settings.clock
        self.keys = Keys(settings.prefix)
        self.documents = Documents()
        self.fallback = Fallback(held=lambda key: self._slot_keeper.held(key))
        self.tally = Tally()
        self._admitted = self.tally.cell("store", "ok")
        self.place = place_of(settings.url, settings.timeout)
        instance = settings.instance or f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.usage = UsageLog(instance, late=lambda: self.leases.count())
        identity = Identity(id=instance, host=socket.gethostname(), pid=os.getpid(), version=library_version())
        self.agent = Agent(
            client_factory=lambda: self.place.client(BACKGROUND_BUDGET),
            keys=self.keys,
            documents=self.documents,
            usage=self.usage,
            identity=identity,
            hooks=self,
            state_dir=settings.state_dir,
            look=self.place.look,
            duty_failures=self.place.duty_failures,
            fallbacks=lambda: self.fallbacks,
            overflowing=lambda: self.planner.shelf.overflowing(monotonic()),
            failed=lambda cause: self.tally.failed(cause),
        )
        self.breaker = self.place.breaker
        self._background = self.place.pipe(BACKGROUND_BUDGET)
        self._paying = self.place.pipe(BACKGROUND_BUDGET, respects_breakers=False)
        self._trial = Trial(self.place.pipe(settings.timeout), self.keys)
        # A test's clock stands still or jumps: nothing may be kept for a time that passes by itself.
        self._keeping = settings.clock is None
        fleet = (lambda: self.agent.fleet_size) if self._keeping else None
        self.planner = Planner(self.keys, self.documents, self.usage, self.now_us, fleet=fleet)
        self.denials = Denials(self.documents, self.tally)
        self.fallbacks = 0
        self.on_recovery: Callable[[], None] = lambda: None
        self.unrestored = Unrestored(self._paying)
        self._payer = Payer(
            self.fallback, self._paying, self.unrestored, self.now_us, self.clock, self.place.load_library
        )
        self.place.on_open = lambda cause: self.agent.wake()
        self.place.on_change = self._reconnect
        self.place.replay = self._payer.pay
        self.place.on_return = self._return_to
        self._tend()

    def _tend(self) -> None:
        """Make the threads that tend it, anew in a forked child: what they hold is the parent's."""
        self._slot_keeper = SlotKeeper(self._background, renews=self.clock is None)
        self.leases = LeaseKeeper(self, self._background)

    # Its life.

    def start(self, timeout: float) -> bool:
        """Start tending; wait until documents are there, at most *timeout* seconds. Returns whether they are."""
        self._begin()
        return self.agent.wait_loaded(timeout)

    def start_quietly(self) -> None:
        """Start tending and wait for nothing: limits in code need no documents. A test's clock needs no tending."""
        if self.clock is None:
            self._begin()

    def _begin(self) -> None:
        self.place.start()
        self.agent.start()

    def stop(self) -> None:
        """Give back what is held, pay what is owed, report what is left, and stop tending."""
        self.leases.close()
        ended = self.agent.stop(STOP_SECONDS)
        ended = self.place.stop(STOP_SECONDS, agent_ended=ended)
        if ended and self.fallback.owes():  # else whoever pays in the background may be at it still
            self._payer.pay(self.place.is_ready)
        self._background.close()
        self._paying.close()
        self._trial.close()
        self.fallback.doubts.clear()
        # Whoever asks once more finds no plan at hand, and has it begin anew.
        self.documents.rest()
        self.planner.in_code.clear()

    def after_fork(self) -> None:
        """Go on in a child process: threads do not survive a fork."""
        self.place.after_fork()
        self._tend()
        self.fallback.after_fork()
        self.planner.clear()
        self.tally.after_fork()
        self.agent.after_fork()

    @property
    def state(self) -> str:
        """``starting``, ``ok`` or ``degraded``."""
        return "degraded" if self.breaker.open else self.agent.state

    def keep_slots(self, reservation: Reservation) -> None:
        """Know and renew the slots of a reservation while it is open."""
        self._slot_keeper.keep(reservation)

    def drop_slots(self, reservation: Reservation) -> None:
        """Forget them."""
        self._slot_keeper.drop(reservation)

    # Time and place.

    def is_away(self, key: str) -> bool:
        """Tell whether the counter of this key is out of reach now."""
        return self.place.is_away(key)

    def together(self, rows: Sequence[tuple[Bound, int, int]]) -> Iterable[list[tuple[Bound, int, int]]]:
        """Return the rows in groups that one call may correct."""
        return self.place.groups(rows, lambda row: row[0].tag)

    def _reconnect(self) -> None:
        """The primary is another one: what leads to the old one is not used any longer."""
        self._background.close()
        self.on_recovery()

    def now_us(self) -> int:
        """Return the best idea of the store's time."""
        if self.clock is not None:
            return self.clock()
        return self.agent.now_us()

    # From a request to its plan.

    def fetching(self, name: str) -> Steps:
        """Steps that ask the store for a token's document; return the entry, or a refusal if nobody can tell."""
        if self.breaker.open and self.breaker.cause not in errors.READS:
            return self.planner.refusal("degraded_denied")
        asked_at = self.documents.generation
        try:
            text = yield resp.pack(("GET", self.keys.token(name)))
            # If it lost everything, that it does not know a token says nothing about the token.
            lost = text is None and (yield resp.pack(("HGET", self.keys.documents, "revision"))) is None
        except StoreTrouble as exc:
            self.failed(exc)
            if self.breaker.open:  # it cannot even be read any longer: the next request need not try
                self.breaker.trip(exc.cause)
            return self.planner.refusal("degraded_denied")
        if lost:
            return self.planner.refusal("degraded_denied")
        return self.documents.remember(name, text, asked_at)

    def refused(self, decision: Decision) -> Decision:
        """Count a request that was refused before any counter was asked, and return its decision."""
        self.tally.count(decision.source, decision.reason)
        return decision

    # From a plan to its decision.

    def encode(self, plan: Plan, costs: Costs, *, charge: bool = True, ident: str = "") -> bytes:
        """Return the command that decides. Raises InParts if no single command can, on this store."""
        if plan.spread and self.place.one_slot_per_call:
            raise InParts()
        now_us = self.now_us() if plan.follows_calendar or self.clock is not None else 0
        if charge and not ident and type(costs) is int and costs == 1 and self.clock is None:
            kept = plan.once(now_us)
            if kept is not None:
                return kept
        return protocol.decide(plan, costs, now_us, clock=self.clock is not None, charge=charge, ident=ident)

    def from_lease(self, plan: Plan, lease: Lease, costs: Costs) -> Decision | None:
        """Return the decision that permits at hand make, or None: the store has to be asked."""
        if costs == 1:
            return self.one_from_lease(plan)
        if type(costs) is not int:
            return None
        left = lease.take(costs)
        if left <= lease.low and not lease.asking and lease.steady():
            self.leases.ask(lease)
        if left < 0:
            return None
        self._count_leased(plan, lease.reply, costs)
        return Decision(True, "ok", "lease", plan, lease.reply, 5, left)

    def one_from_lease(self, plan: Plan) -> Decision | None:
        """Return the decision on one request that a permit at hand makes, or None: the store has to be asked."""
        lease = plan.lease
        if lease is None:
            return None
        left = lease.take(1)
        if left <= lease.low and not lease.asking and lease.steady():
            self.leases.ask(lease)
        return None if left < 0 else Decision(True, "ok", "lease", plan, lease.reply, 5, left)

    @staticmethod
    def _count_leased(plan: Plan, reply: Sequence[int], cost: int) -> None:
        if plan.usage is not None:
            plan.usage.passed(reply[1] // 60_000_000, cost, tuple((bound.index, cost) for bound in plan.bounds))

    def answer(
        self, plan: Plan, costs: Costs, reply: Sequence[int], *, charge: bool = True, ident: str = ""
    ) -> Decision:
        """Return the decision that the store made."""
        if self.breaker.failures:
            self.breaker.succeeded()
        width = 5 if ident else 4
        if reply[0] == 1:
            decision = Decision(True, "ok", "store", plan, reply, width)
            if charge:
                self._admitted[0] += 1
        else:
            reason = protocol.reason_of(plan, reply, width)
            decision = Decision(False, reason, "store", plan, reply, width)
            if charge:
                self.tally.count("store", reason)
            if charge and not ident and self._keeping:
                self.denials.remember(plan, costs, decision)
        plan.last = reply if width == 4 else without_marks(reply)
        if charge and plan.usage is not None:
            self._count(plan, costs, plan.last, reply[0] == 1)
        return decision

    def _count(self, plan: Plan, costs: Costs, reply: Sequence[int], passed: bool) -> None:
        usage: TokenUsage = plan.usage
        minute = reply[1] // 60_000_000
        if passed and costs == 1 and not plan.has_shadows:
            usage.passed(minute, 1, plan.ones)
            return
        requests = costs if isinstance(costs, int) else costs.get("requests", 1)
        if passed and not any(reply[4::4]):
            usage.passed(minute, requests, tuple((bound.index, bound.cost_of(costs)) for bound in plan.bounds))
            return
        usage.decided(minute, passed, requests if passed else 0, states_of(plan.bounds, costs, reply, passed))

    def unlimited(self, plan: Plan, costs: Costs) -> Decision:
        """Return the decision on a request that falls under no limit."""
        if self.place.is_open() and self._distrusts(plan):
            return self.refused(self.planner.refusal("degraded_denied"))
        now_us = self.now_us()
        self.tally.count("documents", "ok")
        if plan.usage is not None:
            self._count(plan, costs, (1, now_us), True)
        return Decision(True, "ok", "documents", plan, (1, now_us))

    def resetting(self, plan: Plan) -> Steps:
        """Steps that forget counters. Raises StoreTrouble."""
        # What was charged before the reset must not be handed out, or given back, after it.
        yield from self.leases.returning(plan.keys)
        yield resp.pack(protocol.reset(plan.keys))
        plan.last = ()
        self.fallback.forget(plan.keys)
        self.denials.forget()

    # When something goes wrong.

    def troubled(self, plan: Plan, costs: Costs, exc: StoreTrouble, *, charge: bool = True, ident: str = "") -> Steps:
        """Steps after a failed call: once more if it surely was not executed, else the fallback decides."""
        if isinstance(exc, InParts):
            return (yield from parts.deciding(self, plan, costs, charge=charge, ident=ident))
        if exc.retryable and not self.breaker.open:
            try:
                yield from self._loading(exc)
                reply = resp.numbers((yield self.encode(plan, costs, charge=charge, ident=ident)))
                if reply[0] < 0:
                    return (yield from self.outside_calendar(plan, costs, reply, charge=charge, ident=ident))
                return self.answer(plan, costs, reply, charge=charge, ident=ident)
            except StoreTrouble as again:
                exc = again
        return self._in_vain(plan, costs, exc, charge=charge, ident=ident)

    def outside_calendar(
        self, plan: Plan, costs: Costs, reply: Sequence[int], *, charge: bool = True, ident: str = ""
    ) -> Steps:
        """Steps after a reply that says that the store's time lies in another window, or that its counters are lost."""
        if reply[0] == protocol.NOT_RESTORED:
            return self.undecided(plan, costs, reply[0], charge=charge, ident=ident)
        try:
            command = protocol.decide(plan, costs, reply[1], clock=self.clock is not None, charge=charge, ident=ident)
            reply = resp.numbers((yield command))
        except StoreTrouble as exc:
            return self._in_vain(plan, costs, exc, charge=charge, ident=ident)
        if reply[0] < 0:
            return self.undecided(plan, costs, reply[0], charge=charge, ident=ident)
        return self.answer(plan, costs, reply, charge=charge, ident=ident)

    def undecided(self, plan: Plan, costs: Costs, code: int, *, charge: bool = True, ident: str = "") -> Decision:
        """Return the decision of this process where the store made none; *code* is the head of its reply."""
        cause = "calendar"
        if code == protocol.NOT_RESTORED:
            cause = "not_restored"
            self.unrestored.add(plan.touches[len(plan.keys) :])
        return self.fall_back(plan, costs, charge=charge, ident=ident).after(cause, ambiguous=False)

    def _in_vain(self, plan: Plan, costs: Costs, exc: StoreTrouble, *, charge: bool, ident: str) -> Decision:
        """Return the decision of this process after the store was asked in vain."""
        self.failed(exc)
        decision = self.fall_back(plan, costs, charge=charge, ident=ident, trouble=exc)
        return decision.after(exc.cause, ambiguous=exc.executed)

    # Values that may have no counter yet.

    def enrolling(self, plan: Plan, costs: Costs, *, ident: str = "") -> Steps:
        """Steps that decide where values may be new: each is enrolled, or shares its limit's overflow counter."""
        if plan.spread and self.place.one_slot_per_call:
            return (yield from parts.deciding(self, plan, costs, charge=True, ident=ident))
        began, clock, now_us, reply = monotonic(), self.clock is not None, self.now_us(), (-1, 0)
        for _ in range(2):  # once more if the store's time lies in another window than this process thought
            try:
                reply, *beyond = yield from self.asking(protocol.enrol(plan, costs, now_us, clock=clock, ident=ident))
            except StoreTrouble as exc:
                return self._in_vain(plan, costs, exc, charge=True, ident=ident)
            if reply[0] >= 0:
                chosen = self.planner.placed(plan, beyond)
                if reply[0] == 1:
                    self.planner.shelf.trust(chosen, began + TRUST_SECONDS)
                return self.answer(chosen, costs, reply, ident=ident)
            if reply[0] == protocol.NOT_RESTORED:
                break
            now_us = reply[1]
        return self.undecided(plan, costs, reply[0], ident=ident)

    def asking(self, command: bytes) -> Steps:
        """Steps that send a command, and once more if it surely was not executed. Raises StoreTrouble."""
        try:
            return (yield command)
        except StoreTrouble as exc:
            if not exc.retryable or self.breaker.open:
                raise
            yield from self._loading(exc)
        return (yield command)

    @staticmethod
    def _loading(exc: StoreTrouble) -> Steps:
        """Steps that give the store its functions, if they were what was missing. Raises StoreTrouble."""
        if not isinstance(exc, LibraryMissing):
            return
        try:
            yield resp.pack(("FUNCTION", "LOAD", "REPLACE", library_source()))
        except StoreTrouble as refused:
            # Who may not load them still lacks them, and not his rights.
            raise exc if refused.cause == "auth" else refused from None

    def failed(self, exc: StoreTrouble) -> None:
        """Count a failed call, unless it only concerns itself, or one node of a cluster: that was counted there."""
        if exc.cause != "away":  # that one was not sent at all
            self.tally.failed(exc.cause)
        self.place.failed(exc)

    def fall_back(
        self, plan: Plan, costs: Costs, *, charge: bool = True, ident: str = "", trouble: StoreTrouble | None = None
    ) -> Decision:
        """Return the decision of this process alone; *trouble* as of :meth:`Fallback.decide`."""
        if self._distrusts(plan):
            self.fallbacks += 1
            return self.refused(self.planner.refusal("degraded_denied"))
        if plan.newcomers and not plan.enrolled_until:
            plan = self.planner.placed(plan, self.fallback.beyond(plan))
        reply, reason = self.decide_alone(plan, costs, charge=charge, ident=ident, trouble=trouble)
        return self.degraded(plan, costs, reply, reason, charge=charge, ident=ident)

    def decide_alone(
        self, plan: Plan, costs: Costs, *, charge: bool, ident: str, trouble: StoreTrouble | None
    ) -> tuple[list[int], str]:
        """Return the reply of this process alone, and the reason."""
        self.place.wake()  # what is admitted now is paid as soon as its node can be
        fleet = max(1, self.agent.fleet_size)
        return self.fallback.decide(plan, costs, self.now_us(), fleet, charge=charge, ident=ident, trouble=trouble)

    def degraded(
        self, plan: Plan, costs: Costs, reply: Sequence[int], reason: str, *, charge: bool, ident: str
    ) -> Decision:
        """Return a decision that this process made, as a whole or in part."""
        self.fallbacks += 1
        width = 5 if ident else 4
        if charge:
            self.tally.count("fallback", reason)
        if charge and plan.usage is not None:
            self._count(plan, costs, reply if width == 4 else without_marks(reply), reply[0] == 1)
        return Decision(reply[0] == 1, reason, "fallback", plan, reply, width)

    def _distrusts(self, plan: Plan) -> bool:
        """Whether a token's plan is too old to go on being obeyed; limits in code depend on no document."""
        return plan.usage is not None and self.agent.unconfirmed_for() > TOKEN_TRUST_SECONDS

    # What the agent asks.

    def is_open(self) -> bool:
        """Return whether all decisions are made without the store."""
        return self.breaker.open

    def outages(self) -> tuple[int, int]:
        """Return how many servers of the store are away now, and how often one was found so."""
        return self.place.outages()

    def lost(self, reason: str) -> None:
        """The agent found the store away before a request did."""
        self.breaker.trip(reason)

    def recovered(self) -> bool:
        """The store answers again: pay what is owed, then decide with it. False: it does not answer well enough."""
        return self.place.recover(self._return_to_store)

    def _return_to_store(self) -> bool:
        """Replay what is owed, then decide with the store again. False: it does not answer well enough."""
        # Whatever was connected before may lead to a server that was replaced meanwhile, and answers nevertheless.
        self.place.forget()
        for pipe in (self._paying, self._background, self._trial):
            pipe.close()
        if self.breaker.open and (exc := self._trial.trouble()) is not None:
            self.tally.failed(exc.cause)
            self.breaker.trip(exc.cause)
            return False
        if not self._payer.pay(lambda key: True):
            return False
        self.on_recovery()
        self.breaker.close()
        self.fallback.rest(lambda key: not self.unrestored.holds(key))
        return True

    def settle(self) -> None:
        """Pay what the store could not take before."""
        if self.breaker.open:
            return
        now = monotonic()
        if self.unrestored.sets or self.fallback.owes():
            self.unrestored.look(now)
            if self.place.recover(lambda: self._payer.pay(lambda key: True)):
                self.unrestored.release(now)

    def _return_to(self, is_back: IsReady) -> None:
        """Decide with the store again for the counters of nodes that are back."""
        self.on_recovery()
        self.fallback.rest(lambda key: is_back(key) and not self.unrestored.holds(key))


__all__ = ["Engine", "Steps"]
