"""
What both limiters share, without I/O of its own: finding plans, making decisions, remembering denials, failing over.

Whatever takes more than one call to the store is written once, as a generator of *steps*: it yields encoded commands
and is sent their replies, or thrown a StoreTrouble. Both limiters drive them in the same few lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any, Final

from enforcement import parts, protocol
from enforcement.agent import Agent, ClusterAgent, Identity
from enforcement.census import RETRY_SECONDS, TRUST_SECONDS, Census
from enforcement.cluster import ClusterPipe
from enforcement.decision import Decision
from enforcement.documents import Project, Token
from enforcement.failover import Breaker, Fallback, without_marks
from enforcement.keys import DEFAULT_PREFIX, Keys, dirty_beside, fingerprint
from enforcement.lease_keeper import LeaseKeeper
from enforcement.leases import Lease
from enforcement.limits import Limit
from enforcement.lua import library_source
from enforcement.matching import Attributes, check_attributes
from enforcement.parts import AGAIN, InParts
from enforcement.place import Place
from enforcement.plans import Bound, Costs, Plan, Rule, Subject, bind_in_code, rules_of
from enforcement.protocol import LibraryMissing, StoreTrouble
from enforcement.reservation import REMEMBERED_MS, Reservation, SlotKeeper, marker_of
from enforcement.routes import Node, Tender
from enforcement.shelf import Shelf
from enforcement.sizes import MAX_INSTANCE_LENGTH, MAX_TOKEN_LENGTH
from enforcement.snapshot import Derived, Documents, Snapshot, TokenEntry
from enforcement.tally import Cell, Tally
from enforcement.tokens import digest, is_well_formed
from enforcement.trial import Trial
from enforcement.unrestored import Unrestored
from enforcement.usage import State, TokenUsage, UsageLog

Steps = Generator[bytes, Any, Any]

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
DEFAULT_TIMEOUT: Final = 0.025
MAX_PLANS: Final = 10_000
DENIAL_SECONDS: Final = 0.25
"""A denial is believed no longer than this without asking again: another process may give back or reset."""
TOKEN_TRUST_SECONDS: Final = 600.0
"""How long tokens are good without a word from the store: it alone would say that one was revoked meanwhile."""
BACKGROUND_BUDGET: Final = 1.0
STOP_SECONDS: Final = 2.0

_NOTHING: Final[Attributes] = {}
_LONG: Final = 64
_NAME: Final = re.compile(rf"[!-~]{{1,{MAX_INSTANCE_LENGTH}}}", re.ASCII)
_serials = count()


@dataclass(frozen=True, slots=True)
class Settings:
    """
    How an enforcer reaches its store, and who it is.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, or one that names several hosts
            (:mod:`enforcement.topology`).
        prefix: What all keys begin with.
        instance: Its name in the fleet; None: made of host, process and chance.
        state_dir: Folder for the last good documents; None: they are not kept.
        timeout: Seconds a decision may take, connecting included.
        clock: Microseconds since the epoch, for tests; None: the store's clock.
    """

    url: str = DEFAULT_URL
    prefix: str = DEFAULT_PREFIX
    instance: str | None = None
    state_dir: Path | None = None
    timeout: float = DEFAULT_TIMEOUT
    clock: Callable[[], int] | None = None

    def __post_init__(self) -> None:
        if self.instance is not None and not _NAME.fullmatch(self.instance):
            raise ValueError(f"instance: must be 1 to {MAX_INSTANCE_LENGTH} printable ASCII characters without blanks.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """
        Read ``SLUICEGATE_REDIS_URL``, else ``REDIS_URL``, and ``SLUICEGATE_PREFIX``, ``_INSTANCE``, ``_STATE_DIR``,
        ``_TIMEOUT_MS``.

        Raises:
            ValueError: A value that cannot be used; the text names the variable.
        """
        timeout = environ.get("SLUICEGATE_TIMEOUT_MS") or "25"
        if not timeout.isascii() or not timeout.isdigit() or not 1 <= int(timeout) <= 10_000:
            raise ValueError(f"SLUICEGATE_TIMEOUT_MS: must be a whole number from 1 to 10000, not {timeout!r}.")
        state_dir = environ.get("SLUICEGATE_STATE_DIR")
        return cls(
            url=environ.get("SLUICEGATE_REDIS_URL") or environ.get("REDIS_URL") or DEFAULT_URL,
            prefix=environ.get("SLUICEGATE_PREFIX") or DEFAULT_PREFIX,
            instance=environ.get("SLUICEGATE_INSTANCE") or None,
            state_dir=Path(state_dir) if state_dir else None,
            timeout=int(timeout) / 1_000,
        )


@dataclass(slots=True)
class TokenPlans:
    """The plans of one token at one state of the documents; most tokens have exactly one."""

    rules: tuple[Rule, ...]
    revision: int
    usage: TokenUsage
    until_us: int | None
    never_expires: bool
    always: Plan | None
    testers: tuple[Callable[[Attributes], bool] | None, ...]
    censuses: tuple[Census | None, ...]
    leasing: bool = True
    serial: int = field(default_factory=_serials.__next__)

    def plan(self, attributes: Attributes, keys: Keys, shelf: Shelf) -> Plan:
        """Return the plan of a request with these attributes, over overflow counters where values found no place."""
        matched = [r for r, test in zip(self.rules, self.testers, strict=True) if test is None or test(attributes)]
        parts = [(r.index, *(_short(attributes[part]) for part in r.limit.partition_by)) for r in matched]
        name = (self.serial, *parts)
        plan = shelf.get(name)
        if plan is None or (plan.overflows and monotonic() >= plan.retry_at):
            bounds = tuple(rule.bind(keys, attributes, self.censuses[rule.index]) for rule in matched)
            plan = Plan(bounds, revision=self.revision, usage=self.usage, leasing=self.leasing, name=name)
            plan.enrolled_until = shelf.trusted(plan)
            if not plan.newcomers or plan.enrolled_until > monotonic():
                shelf.put(name, plan)  # the others are put there when the store has said where they belong
        elif plan.overflows:
            shelf.overflowed += 1
        return plan


def _short(value: str) -> str | tuple[str]:
    """Return what stands for a value in a name; a long one by its fingerprint, in a tuple, which no value is."""
    return value if len(value) <= _LONG else (fingerprint((value,)),)


class Engine:
    """One process' enforcement: documents, plans, breaker, fallback, usage, and the thread that tends them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = settings.clock
        self.keys = Keys(settings.prefix)
        self.documents = Documents()
        self.fallback = Fallback()
        self.tally = Tally()
        self._admitted = self.tally.cell("store", "ok")
        self.place = Place(settings.url, settings.timeout)
        instance = settings.instance or f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.usage = UsageLog(instance, late=lambda: self.leases.count())
        identity = Identity(id=instance, host=socket.gethostname(), pid=os.getpid(), version=library_version())
        self.agent = (Agent if self.place.routes is None else ClusterAgent)(
            client_factory=lambda: self.place.client(BACKGROUND_BUDGET),
            keys=self.keys,
            documents=self.documents,
            usage=self.usage,
            identity=identity,
            hooks=self,
            state_dir=settings.state_dir,
            look=self.place.look,
            fallbacks=lambda: self.fallbacks,
            overflowing=lambda: self.shelf.overflowing(monotonic()),
            failed=lambda cause: self.tally.failed(cause),
        )
        # Of a store that is away as a whole. On a cluster it stays closed: there each node has one.
        self.breaker = Breaker(on_open=lambda cause: self.agent.wake())
        self._background = self.place.pipe(BACKGROUND_BUDGET)
        self._paying = self.place.pipe(BACKGROUND_BUDGET, heeds=False)
        self._trial = Trial(self.place.pipe(settings.timeout), self.keys)
        self.plans: OrderedDict[Any, Plan] = OrderedDict()
        self.shelf = Shelf()
        self._slot_keeper = SlotKeeper(self._background)
        self.leases = LeaseKeeper(self, self._background)
        # A test's clock stands still or jumps: nothing may be kept for a time that passes by itself.
        self._keeping = settings.clock is None
        self._given_back = 0
        self.fallbacks = 0
        self.on_recovery: Callable[[], None] = lambda: None
        self._tender: Tender | None = None
        self.unrestored = Unrestored(self._paying)
        if self.place.sentinels is not None:
            self.place.sentinels.on_change = self._reconnect
        self._tend()

    def _tend(self) -> None:
        routes = self.place.routes
        if routes is not None:
            self._tender = Tender(routes, self._pay_nodes)
            routes.on_trouble = self._tender.wake

    # Its life.

    def start(self, timeout: float) -> bool:
        """Start tending; wait until documents are there, at most *timeout* seconds. Returns whether they are."""
        if self._tender is not None:
            self._tender.start()
        self.agent.start()
        return self.agent.wait_loaded(timeout)

    def start_quietly(self) -> None:
        """Start tending and wait for nothing: limits in code need no documents. A test's clock needs no tending."""
        if self.clock is None:
            self.agent.start()

    def stop(self) -> None:
        """Give back what is held, report what is left, and stop tending."""
        self.leases.close()
        self.agent.stop(STOP_SECONDS)
        if self._tender is not None:
            self._tender.stop()
        self._background.close()
        self._paying.close()
        self._trial.close()
        self.documents.rest()

    def after_fork(self) -> None:
        """Go on in a child process: threads do not survive a fork."""
        self.place.after_fork()
        self._tend()
        self._slot_keeper = SlotKeeper(self._background)
        self.leases = LeaseKeeper(self, self._background)
        self.plans.clear()  # what they hold on lease is the parent's
        self.shelf.clear()
        self.tally.after_fork()
        self.agent.after_fork()

    @property
    def state(self) -> str:
        """``starting``, ``ok`` or ``degraded``."""
        return "degraded" if self.breaker.open else self.agent.state

    def keep_slots(self, reservation: Reservation) -> None:
        """Renew the slots of a reservation while it is open; a test's clock stands still, and so do its slots."""
        if self.clock is None:
            self._slot_keeper.keep(reservation)

    def drop_slots(self, reservation: Reservation) -> None:
        """Renew them no longer."""
        self._slot_keeper.drop(reservation)

    # Time and place.

    def is_away(self, key: str) -> bool:
        """Tell whether the counter of this key is out of reach now."""
        return self.breaker.open if self.place.routes is None else self.place.routes.is_away(key)

    def together(self, rows: Sequence[tuple[Bound, int, int]]) -> list[list[tuple[Bound, int, int]]]:
        """Return the rows that one call may correct: all, or on a cluster those of one hash tag."""
        if self.place.routes is None:
            return [list(rows)]
        by_tag: dict[str, list[tuple[Bound, int, int]]] = {}
        for row in rows:
            by_tag.setdefault(row[0].tag, []).append(row)
        return list(by_tag.values())

    def _reconnect(self) -> None:
        """The primary is another one: what leads to the old one is not used any longer."""
        self._background.close()
        self.on_recovery()

    def now_us(self) -> int:
        """Return the best idea of the store's time."""
        if self.clock is not None:
            return self.clock()
        return time.time_ns() // 1_000 + self.agent.clock_offset_us

    # From a request to its plan.

    def plan_in_code(self, limits: Limit | Sequence[Limit], key: str) -> Plan:
        """
        Return the plan of limits that stand in code.

        Raises:
            ValueError: See :func:`~enforcement.plans.bind_in_code`.
        """
        # The limits themselves are known by identity, which is quick; the plan holds them, so that it stays theirs.
        name = (key, id(limits)) if isinstance(limits, Limit) else (key, *map(id, limits))
        plan = self.plans.get(name)
        if plan is None:
            several = (limits,) if isinstance(limits, Limit) else tuple(limits)
            plan = Plan(bind_in_code(several, key, self.keys), leasing=self._keeping)
            self.plans[name] = plan
            if len(self.plans) > MAX_PLANS:
                self.plans.popitem(last=False)
        return plan

    def find(self, token: object) -> TokenEntry | Decision | str:
        """Return what is known of a token, the refusal of what is none, or the digest to ask the store for."""
        if not isinstance(token, str) or len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            return self.refusal("unknown_token")
        name = digest(token)
        entry = self.documents.find(name)
        if entry is not None:
            return entry
        return name if is_well_formed(token) else self.refusal("unknown_token")

    def fetching(self, name: str) -> Steps:
        """Steps that ask the store for a token's document; return the entry, or a refusal if nobody can tell."""
        if self.breaker.open:
            return self.refusal("degraded_denied")
        asked_at = self.documents.generation
        try:
            text = yield protocol.pack(("GET", self.keys.token(name)))
        except StoreTrouble as exc:
            self.failed(exc)
            return self.refusal("degraded_denied")
        if text is None:
            try:
                revision = yield protocol.pack(("HGET", self.keys.documents, "revision"))
            except StoreTrouble as exc:
                self.failed(exc)
                return self.refusal("degraded_denied")
            if (
                revision is None
            ):  # the store lost everything: that it does not know a token says nothing about the token
                return self.refusal("degraded_denied")
        return self.documents.remember(name, text, asked_at)

    def plan_of(self, entry: TokenEntry, attributes: Attributes | None) -> Plan | Decision:
        """
        Return the plan of a request with this token, or its refusal.

        Raises:
            ValueError: Attributes that are not a small mapping of texts.
        """
        token = entry.token
        if token is None:
            return self.refusal("degraded_denied" if entry.problem else "unknown_token")
        plans: TokenPlans | None = entry.plan
        if plans is None or entry.generation != self.documents.generation:
            plans = self._compile(entry)
        if isinstance(plans, Decision):
            return plans
        if token.expires_at_us is not None and self.now_us() >= token.expires_at_us:
            return self.refusal("expired")
        if plans.until_us is not None and self.now_us() >= plans.until_us:
            plans = self._compile(entry)
        if plans.always is not None:
            return plans.always
        return plans.plan(check_attributes(attributes) if attributes else _NOTHING, self.keys, self.shelf)

    @staticmethod
    def keep_plan(derived: Derived, token: object, entry: TokenEntry, plan: Plan | Decision) -> None:
        """
        Keep a token's plan at hand, if it is the same for every request until the documents change.

        Args:
            derived: As it was before anything was looked up: should the documents have changed meanwhile, it is the old
                one, and what is kept in it is gone with it.
        """
        plans = entry.plan
        if type(plans) is TokenPlans and plans.always is plan and plans.until_us is None and plans.never_expires:
            derived.keep(token, plan)

    def _compile(self, entry: TokenEntry) -> Any:
        token, now_us = entry.token, self.now_us()
        assert token is not None
        generation, state = self.documents.generation, self.documents.current
        project = state.projects.get(token.project)
        if token.revoked:
            made: Any = self.refusal("revoked")
        elif project is None or not _complete(state, project, token):
            # Published this very moment and not read yet, or not readable: in either case not to be judged now.
            made = self.refusal("degraded_denied")
        elif not project.active:
            made = self.refusal("inactive_project")
        else:
            rules = rules_of(Subject(project, token, state.policies, state.global_policy), now_us)
            made = self._plans_of(entry, rules, state.revision)
        entry.plan, entry.generation = made, generation
        return made

    def _plans_of(self, entry: TokenEntry, rules: tuple[Rule, ...], revision: int) -> TokenPlans:
        assert entry.token is not None
        units = [(r.policy.id, r.limit.name, r.limit.unit) for r in rules]
        usage = self.usage.of(entry, units)
        testers = tuple(rule.limit.match.compile(rule.limit.partition_by) for rule in rules)
        ends = [rule.ends_at_us for rule in rules if rule.ends_at_us is not None]
        always = None
        if not any(testers):
            bounds = tuple(rule.bind(self.keys, _NOTHING) for rule in rules)
            always = Plan(bounds, revision=revision, usage=usage, leasing=self._keeping)
        never_expires = entry.token.expires_at_us is None
        censuses = tuple(rule.census(self.keys) for rule in rules)
        return TokenPlans(
            rules, revision, usage, min(ends, default=None), never_expires, always, testers, censuses, self._keeping
        )

    def refusal(self, reason: str) -> Decision:
        """Return a denial that needs no counter."""
        source = "fallback" if reason == "degraded_denied" else "documents"
        return Decision(False, reason, source, Plan((), revision=self.documents.current.revision))

    def refused(self, decision: Decision) -> Decision:
        """Count a request that was refused before any counter was asked, and return its decision."""
        self.tally.count(decision.source, decision.reason)
        return decision

    # From a plan to its decision.

    def encode(self, plan: Plan, costs: Costs, *, charge: bool = True, ident: str = "") -> bytes:
        """Return the command that decides. Raises InParts if no single command can, on this store."""
        if plan.spread and self.place.routes is not None:
            raise InParts()
        now_us = self.now_us() if plan.follows_calendar or self.clock is not None else 0
        if charge and not ident and type(costs) is int and costs == 1 and self.clock is None:
            kept = plan.once(now_us)
            if kept is not None:
                return kept
        return protocol.decide(plan, costs, now_us, clock=self.clock is not None, charge=charge, ident=ident)

    def known_denial(self, plan: Plan, costs: Costs) -> Decision | None:
        """Return a denial that is remembered for these costs, if it still holds."""
        denial: Denial | None = plan.denied
        if denial is None:
            return None
        now = monotonic()
        if (
            now >= denial.until
            or denial.given_back != self._given_back
            or denial.generation != self.documents.generation
        ):
            plan.denied = None
            return None
        if costs != denial.costs and not _at_least(plan, costs, denial.costs):
            return None
        if plan.usage is not None:
            plan.usage.denied_again(denial.minute, denial.states)
        denial.recalled[0] += 1
        return denial.told(now)

    def from_lease(self, plan: Plan, lease: Lease, costs: Costs) -> Decision | None:
        """Return the decision that permits at hand make, or None: the store has to be asked."""
        if type(costs) is not int:
            return None
        left = lease.take(costs)
        if left <= lease.low and not lease.asking and lease.steady():
            self.leases.ask(lease)
        if left < 0:
            return None
        if costs != 1:
            self._count_leased(plan, lease.reply, costs)
        return Decision(True, "ok", "lease", plan, lease.reply, 5, left)

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
                self._remember(plan, costs, decision)
        plan.last = reply if width == 4 else without_marks(reply)
        if charge and plan.usage is not None:
            self._count(plan, costs, plan.last, reply[0] == 1)
        return decision

    def _remember(self, plan: Plan, costs: Costs, decision: Decision) -> None:
        """Keep a denial until it can pass; where no wait is known, as long as any may be kept."""
        waits = [decision.reply[4 + 4 * i] for i, bound in enumerate(plan.bounds) if not bound.limit.shadow]
        wait = DENIAL_SECONDS if min(waits) < 0 else min(DENIAL_SECONDS, max(waits) / 1_000_000)
        states = _states(plan, costs, decision.reply, False)
        recalled = self.tally.cell("denial_cache", decision.reason)
        plan.denied = Denial(decision, costs, wait, self._given_back, self.documents.generation, states, recalled)

    def given_back(self) -> None:
        """Something was given back or reset in this process: no denial is remembered any longer."""
        self._given_back += 1

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
        usage.decided(minute, passed, requests if passed else 0, _states(plan, costs, reply, passed))

    def unlimited(self, plan: Plan, costs: Costs) -> Decision:
        """Return the decision on a request that falls under no limit."""
        if self.is_open() and self._distrusts(plan):
            return self.refused(self.refusal("degraded_denied"))
        now_us = self.now_us()
        self.tally.count("documents", "ok")
        if plan.usage is not None:
            self._count(plan, costs, (1, now_us), True)
        return Decision(True, "ok", "documents", plan, (1, now_us))

    def resetting(self, plan: Plan) -> Steps:
        """Steps that forget counters. Raises StoreTrouble."""
        yield protocol.pack(protocol.reset(plan.keys))
        plan.last = ()
        self.given_back()

    # When something goes wrong.

    def troubled(self, plan: Plan, costs: Costs, exc: StoreTrouble, *, charge: bool = True, ident: str = "") -> Steps:
        """Steps after a failed call: once more if it surely was not executed, else the fallback decides."""
        if isinstance(exc, InParts):
            return (yield from parts.deciding(self, plan, costs, charge=charge, ident=ident))
        if not exc.executed and exc.cause in AGAIN and not self.breaker.open:
            try:
                yield from self._loading(exc)
                reply = protocol.numbers((yield self.encode(plan, costs, charge=charge, ident=ident)))
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
            reply = protocol.numbers((yield command))
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
        decision = self.fall_back(plan, costs, charge=charge, ident=ident)
        return decision.after(exc.cause, ambiguous=exc.executed)

    # Values that may have no counter yet.

    def enrolling(self, plan: Plan, costs: Costs, *, ident: str = "") -> Steps:
        """Steps that decide where values may be new: each is enrolled, or shares its limit's overflow counter."""
        if plan.spread and self.place.routes is not None:
            return (yield from parts.deciding(self, plan, costs, charge=True, ident=ident))
        began, clock, now_us, reply = monotonic(), self.clock is not None, self.now_us(), (-1, 0)
        for _ in range(2):  # once more if the store's time lies in another window than this process thought
            try:
                reply, *beyond = yield from self.asking(protocol.enrol(plan, costs, now_us, clock=clock, ident=ident))
            except StoreTrouble as exc:
                return self._in_vain(plan, costs, exc, charge=True, ident=ident)
            if reply[0] >= 0:
                chosen = self.placed(plan, beyond)
                if reply[0] == 1:
                    self.shelf.trust(chosen, began + TRUST_SECONDS)
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
            if exc.executed or exc.cause not in AGAIN or self.breaker.open:
                raise
            yield from self._loading(exc)
        return (yield command)

    @staticmethod
    def _loading(exc: StoreTrouble) -> Steps:
        """Steps that give the store its functions, if they were what was missing. Raises StoreTrouble."""
        if not isinstance(exc, LibraryMissing):
            return
        try:
            yield protocol.pack(("FUNCTION", "LOAD", "REPLACE", library_source()))
        except StoreTrouble as refused:
            # Who may not load them still lacks them, and not his rights.
            raise exc if refused.cause == "auth" else refused from None

    def placed(self, plan: Plan, beyond: Sequence[int]) -> Plan:
        """Return the plan over the counters that were found for its newcomers, and keep it for their next request."""
        if not any(beyond):
            self.shelf.admit(plan.name, plan)
            return plan
        bounds = plan.diverted(beyond)
        name = (plan.name[0], "beyond", *(bound.key for bound in bounds))
        shared = self.shelf.get(name)
        if shared is None:
            shared = Plan(bounds, revision=plan.revision, usage=plan.usage, leasing=self._keeping, name=name)
            self.shelf.put(name, shared)
        shared.retry_at = monotonic() + RETRY_SECONDS
        self.shelf.divert(plan.name, shared)
        self.shelf.overflowed += 1
        for bound in shared.bounds:
            if bound.overflow:
                self.shelf.note((plan.usage.project, bound.policy_id, bound.limit.name), monotonic())
        return shared

    def failed(self, exc: StoreTrouble) -> None:
        """Count a failed call, unless it only concerns itself, or one node of a cluster: that was counted there."""
        if exc.cause != "away":  # that one was not sent at all
            self.tally.failed(exc.cause)
        if exc.away and self.place.routes is None:
            self.breaker.failed(exc.cause)

    def fall_back(self, plan: Plan, costs: Costs, *, charge: bool = True, ident: str = "") -> Decision:
        """Return the decision of this process alone."""
        if self._distrusts(plan):
            self.fallbacks += 1
            return self.refused(self.refusal("degraded_denied"))
        if plan.newcomers and not plan.enrolled_until:
            plan = self.placed(plan, self.fallback.beyond(plan))
        reply, reason = self.decide_alone(plan, costs, charge=charge, ident=ident)
        return self.degraded(plan, costs, reply, reason, charge=charge, ident=ident)

    def decide_alone(self, plan: Plan, costs: Costs, *, charge: bool, ident: str) -> tuple[list[int], str]:
        """Return the reply of this process alone, and the reason."""
        if self._tender is not None:
            self._tender.wake()  # what is admitted now is paid as soon as its node can be
        fleet = max(1, self.agent.fleet_size)
        return self.fallback.decide(plan, costs, self.now_us(), fleet, charge=charge, ident=ident)

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
        """Whether decisions are made without the store; of a cluster, without a node of it."""
        return self.breaker.open if self.place.routes is None else bool(self.place.routes.away())

    def outages(self) -> tuple[int, int]:
        """Return how many servers of the store are away now, and how often one was found so."""
        routes = self.place.routes
        if routes is None:
            return int(self.breaker.open), self.breaker.openings
        return len(routes.away()), routes.openings

    def lost(self, reason: str) -> None:
        """The agent found the store away before a request did."""
        self.breaker.trip(reason)

    def recovered(self) -> bool:
        """The store answers again: pay what is owed, then decide with it. False: it does not answer well enough."""
        if self._tender is not None:
            self._tender.wake()
            return True
        # Whatever was connected before may lead to a server that was replaced meanwhile, and answers nevertheless.
        self.place.forget()
        for pipe in (self._paying, self._background, self._trial):
            pipe.close()
        if self.breaker.open and (exc := self._trial.trouble()) is not None:
            self.tally.failed(exc.cause)
            self.breaker.trip(exc.cause)
            return False
        if not self._pay(lambda key: True):
            return False
        self.on_recovery()
        self.breaker.close()
        return True

    def settle(self) -> None:
        """Pay what the store could not take before, and forget what was decided here where the store counts again."""
        if self.breaker.open:
            return
        now = monotonic()
        if self.unrestored.sets or self.fallback.owes():
            self.unrestored.look(now)
            if self._tender is not None:
                self._tender.wake()
            elif not self._pay(lambda key: True):
                return
            self.unrestored.release(now)
        if not self.fallback.owes():
            self.fallback.forget(lambda key: not (self.is_away(key) or self.unrestored.holds(key)))

    def _pay(self, ready: Callable[[str], bool]) -> bool:
        """Pay what is owed to counters that are ready. False: the store does not take it."""
        # Twice: what the store leaves out of a debt, for its values found no place, is then owed to overflow counters.
        return self._pay_debts(ready) and self._pay_debts(ready)

    def _pay_debts(self, ready: Callable[[str], bool]) -> bool:
        """Pay once, but for debts to counters that are not restored yet, or on the move; False as above."""
        for debt in self.fallback.debts(ready):
            marker = marker_of(debt.entries[0].key, debt.ident)
            corrections = debt.corrections(self.now_us())
            once_for_ms = REMEMBERED_MS if debt.once else None
            now_us = self.clock and self.clock()
            arguments = protocol.settle(corrections, marker, now_us, ident=debt.ident, once_for_ms=once_for_ms)
            enrols = any(entry.bound.census for entry in debt.entries)
            if enrols:
                arguments = protocol.enrol_settle(arguments, [entry.bound for entry in debt.entries])
            try:
                reply = self._paying.call(protocol.pack(arguments))
                if (reply[0] if enrols else reply) == protocol.NOT_RESTORED:
                    self.unrestored.add(dirty_beside(entry.key) for entry in debt.entries if entry.bound.durable)
                    continue
                if enrols:
                    self.fallback.divert(debt, reply[1:])
            except LibraryMissing:
                self._give_library(debt.entries[0].key)
                return False
            except StoreTrouble as exc:
                if exc.away:
                    return False
                if not exc.executed and exc.cause in AGAIN:
                    continue
            self.fallback.paid(debt)
        return True

    def _give_library(self, key: str) -> None:
        """Give the functions to a node that came back without them; to a single store the heartbeat does."""
        if isinstance(self._paying, ClusterPipe):
            with contextlib.suppress(StoreTrouble):  # whoever may load it will do so
                self._paying.load(key, protocol.pack(("FUNCTION", "LOAD", "REPLACE", library_source())))

    def _pay_nodes(self, back: Sequence[Node]) -> bool:
        """What the tender of a cluster asks: pay to the nodes that are back, and to all others that answer."""
        routes = self.place.routes
        assert routes is not None
        if not self._pay(lambda key: not routes.is_away(key, back)):
            return False
        if back:
            self.on_recovery()
        return True


class Denial:
    """A denial that this process remembers; told again with spans that have grown shorter since."""

    __slots__ = (
        "_at",
        "_retell",
        "_told",
        "costs",
        "decision",
        "generation",
        "given_back",
        "minute",
        "recalled",
        "states",
        "until",
    )

    GRAIN_SECONDS: Final = 0.01

    def __init__(
        self,
        decision: Decision,
        costs: Costs,
        seconds: float,
        given_back: int,
        generation: int,
        states: tuple[State, ...],
        recalled: Cell,
    ) -> None:
        self.decision, self.costs, self.states, self.recalled = decision, costs, states, recalled
        self.given_back, self.generation = given_back, generation
        self.minute = decision.reply[1] // 60_000_000
        self._at = monotonic()
        self.until = self._at + seconds
        self._told = decision
        self._retell = 0.0

    def told(self, now: float) -> Decision:
        """Return the denial as of *now*, monotonic seconds; a span may be up to a hundredth of a second too long."""
        if now >= self._retell:
            self._retell = now + self.GRAIN_SECONDS
            passed_us = int((now - self._at) * 1_000_000)
            reply = list(self.decision.reply)
            reply[1] += passed_us
            for i in range(2, len(reply), 4):
                reply[i + 1 : i + 4] = [max(1, span - passed_us) if span > 0 else span for span in reply[i + 1 : i + 4]]
            d = self.decision
            self._told = Decision(False, d.reason, "denial_cache", d.plan, reply)
        return self._told


def _complete(state: Snapshot, project: Project, token: Token) -> bool:
    """Tell whether every policy that falls on a token could be read; a limit that cannot be read is not no limit."""
    return all(name is None or name in state.policies for name in (state.global_policy, project.policy, token.policy))


def _at_least(plan: Plan, costs: Costs, denied: Costs) -> bool:
    """Tell whether these costs are nowhere below those that were denied, and no more hopeless than they were."""
    for bound in plan.bounds:
        cost, low = bound.cost_of(costs), bound.cost_of(denied)
        if cost < low or low <= bound.limit.capacity < cost:
            return False
    return True


def _states(plan: Plan, costs: Costs, reply: Sequence[int], passed: bool) -> tuple[State, ...]:
    """Return each limit's part in a reply of width 4, as usage counts it."""
    return tuple(
        (bound.index, wait == 0, bound.limit.shadow, bound.cost_of(costs) if passed and wait == 0 else 0)
        for bound, wait in zip(plan.bounds, reply[4::4], strict=True)
    )


def library_version() -> str:
    """Return the version of the installed package; "0" in a checkout that was never installed."""
    try:
        return version("sluicegate")
    except PackageNotFoundError:
        return "0"


__all__ = ["Engine", "Settings", "Steps"]
