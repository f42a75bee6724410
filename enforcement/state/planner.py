"""
From a request to its plan: limits in code by key, published policies by token, compiled once and kept while good.

A token has one plan for every request, or, where its limits look at attributes, one for each of their values; those
stand on a shelf that all tokens share.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any, Final

from enforcement.model.documents import Project, Token
from enforcement.model.keys import Keys, fingerprint
from enforcement.model.limits import Limit
from enforcement.model.matching import Attributes, check_attributes
from enforcement.model.partitions import RETRY_SECONDS, PartitionIndex
from enforcement.model.sizes import MAX_TOKEN_LENGTH
from enforcement.model.tokens import digest, is_well_formed
from enforcement.plan.binding import Rule, Subject, bind_in_code, rules_of
from enforcement.plan.decision import Decision
from enforcement.plan.plan import Plan
from enforcement.state.lease import Lease
from enforcement.state.live_plan import LivePlan
from enforcement.state.plan_cache import PlanCache
from enforcement.state.published import DerivedPlans, PublishedState, Snapshot, TokenEntry
from enforcement.state.usage import TokenUsage, UsageLog

MAX_PLANS: Final = 10_000

_NOTHING: Final[Attributes] = {}
_LONG: Final = 64
_serials = count()


@dataclass(slots=True)
class TokenPlans:
    """The plans of one token at one state of the documents; most tokens have exactly one."""

    rules: tuple[Rule, ...]
    revision: int
    usage: TokenUsage
    until_us: int | None
    never_expires: bool
    always: LivePlan | None
    testers: tuple[Callable[[Attributes], bool] | None, ...]
    censuses: tuple[PartitionIndex | None, ...]
    fleet: Callable[[], int] | None = None
    serial: int = field(default_factory=_serials.__next__)

    def plan(self, attributes: Attributes, keys: Keys, plan_cache: PlanCache) -> LivePlan:
        """Return the plan of a request with these attributes, over overflow counters where values found no place."""
        matched = [r for r, test in zip(self.rules, self.testers, strict=True) if test is None or test(attributes)]
        parts = [(r.index, *(_short(attributes[part]) for part in r.limit.partition_by)) for r in matched]
        name = (self.serial, *parts)
        plan = plan_cache.get(name)
        if plan is None or (plan.overflows and monotonic() >= plan.retry_at):
            bounds = tuple(rule.bind(keys, attributes, self.censuses[rule.index]) for rule in matched)
            plan = _with_lease(LivePlan(bounds, revision=self.revision, usage=self.usage, fleet=self.fleet, name=name))
            plan.registered_until = plan_cache.trusted(plan)
            if not plan.unregistered or plan.registered_until > monotonic():
                plan_cache.put(name, plan)  # the others are put there when the store has said where they belong
        elif plan.overflows:
            plan_cache.overflowed += 1
        return plan


def _short(value: str) -> str | tuple[str]:
    """Return what stands for a value in a name; a long one by its fingerprint, in a tuple, which no value is."""
    return value if len(value) <= _LONG else (fingerprint((value,)),)


class Planner:
    """
    Knows what each request of one process falls under.

    Args:
        now_us: The best idea of the store's time, microseconds.
        fleet: Tells how many processes share the limits; None: no permits are taken ahead.

    Attributes:
        in_code: Plans of limits in code, by key and limits.
        shelf: Plans of values of attributes.
    """

    def __init__(
        self,
        keys: Keys,
        documents: PublishedState,
        usage: UsageLog,
        now_us: Callable[[], int],
        *,
        fleet: Callable[[], int] | None,
    ) -> None:
        self.in_code: OrderedDict[Any, LivePlan] = OrderedDict()
        self.plan_cache = PlanCache()
        self._keys = keys
        self._documents = documents
        self._usage = usage
        self._now_us = now_us
        self._fleet = fleet

    def clear(self) -> None:
        """Forget all plans: what they hold on lease is a parent process' own."""
        self.in_code.clear()
        self.plan_cache.clear()

    def plan_in_code(self, limits: Limit | Sequence[Limit], key: str) -> LivePlan:
        """
        Return the plan of limits that stand in code.

        Raises:
            ValueError: See :func:`~enforcement.plan.binding.bind_in_code`.
        """
        # The limits themselves are known by identity, which is quick; the plan holds them, so that it stays theirs.
        name = (key, id(limits)) if isinstance(limits, Limit) else (key, *map(id, limits))
        plan = self.in_code.get(name)
        if plan is None:
            given: Any = limits  # a text, too, is a sequence; what is no Limit is refused by name
            several = (given,) if isinstance(given, (Limit, str)) else tuple(given)
            plan = _with_lease(LivePlan(bind_in_code(several, key, self._keys), fleet=self._fleet))
            self.in_code[name] = plan
            if len(self.in_code) > MAX_PLANS:
                self.in_code.popitem(last=False)
        return plan

    def find(self, token: object) -> TokenEntry | Decision | str:
        """Return what is known of a token, the refusal of what is none, or the digest to ask the store for."""
        if not isinstance(token, str) or len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            return self.refusal("unknown_token")
        name = digest(token)
        entry = self._documents.find(name)
        if entry is not None:
            return entry
        return name if is_well_formed(token) else self.refusal("unknown_token")

    def plan_of(self, entry: TokenEntry, attributes: Attributes | None) -> LivePlan | Decision:
        """
        Return the plan of a request with this token, or its refusal.

        Raises:
            ValueError: Attributes that are not a small mapping of texts.
        """
        token = entry.token
        if token is None:
            return self.refusal("degraded_denied" if entry.problem else "unknown_token")
        plans: TokenPlans | None = entry.plan
        if plans is None or entry.generation != self._documents.generation:
            plans = self._compile(entry)
        if isinstance(plans, Decision):
            return plans
        if token.expires_at_us is not None and self._now_us() >= token.expires_at_us:
            return self.refusal("expired")
        if plans.until_us is not None and self._now_us() >= plans.until_us:
            plans = self._compile(entry)
        if plans.always is not None:
            return plans.always
        return plans.plan(check_attributes(attributes) if attributes else _NOTHING, self._keys, self.plan_cache)

    @staticmethod
    def keep_plan(derived: DerivedPlans, token: object, entry: TokenEntry, plan: LivePlan | Decision) -> None:
        """
        Keep a token's plan at hand, if it is the same for every request until the documents change.

        Args:
            derived: As it was before anything was looked up: should the documents have changed meanwhile, it is the old
                one, and what is kept in it is gone with it.
        """
        plans = entry.plan
        if type(plans) is TokenPlans and plans.always is plan and plans.until_us is None and plans.never_expires:
            derived.keep(token, plan)

    def refusal(self, reason: str) -> Decision:
        """Return a denial that needs no counter."""
        source = "fallback" if reason == "degraded_denied" else "documents"
        return Decision(False, reason, source, Plan((), revision=self._documents.current.revision))

    def placed(self, plan: LivePlan, overflowed: Sequence[int]) -> LivePlan:
        """
        Return the plan over the counters that were found for its unregistered values, and keep it for their next
        request.
        """
        assert plan.name is not None  # values are registered for published policies alone
        assert plan.usage is not None
        if not any(overflowed):
            self.plan_cache.admit(plan.name, plan)
            return plan
        bounds = plan.diverted(overflowed)
        name = (plan.name[0], "beyond", *(bound.key for bound in bounds))
        shared = self.plan_cache.get(name)
        if shared is None:
            shared = _with_lease(
                LivePlan(bounds, revision=plan.revision, usage=plan.usage, fleet=self._fleet, name=name)
            )
            self.plan_cache.put(name, shared)
        shared.retry_at = monotonic() + RETRY_SECONDS
        self.plan_cache.divert(plan.name, shared)
        self.plan_cache.overflowed += 1
        for bound in shared.bounds:
            if bound.overflow:
                self.plan_cache.note((plan.usage.project, bound.policy_id, bound.limit.name), monotonic())
        return shared

    def _compile(self, entry: TokenEntry) -> Any:
        token, now_us = entry.token, self._now_us()
        assert token is not None
        generation, state = self._documents.generation, self._documents.current
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
        usage = self._usage.of(entry, units)
        testers = tuple(rule.limit.match.compile(rule.limit.partition_by) for rule in rules)
        ends = [rule.ends_at_us for rule in rules if rule.ends_at_us is not None]
        always = None
        if not any(testers):
            bounds = tuple(rule.bind(self._keys, _NOTHING) for rule in rules)
            always = _with_lease(LivePlan(bounds, revision=revision, usage=usage, fleet=self._fleet))
        never_expires = entry.token.expires_at_us is None
        censuses = tuple(rule.census(self._keys) for rule in rules)
        return TokenPlans(
            rules, revision, usage, min(ends, default=None), never_expires, always, testers, censuses, self._fleet
        )


def _with_lease(plan: LivePlan) -> LivePlan:
    """Return the plan, with an empty lease if permits may be taken ahead for it."""
    if plan.leasable:
        plan.lease = Lease(plan)
    return plan


def _complete(state: Snapshot, project: Project, token: Token) -> bool:
    """Tell whether every policy that falls on a token could be read; a limit that cannot be read is not no limit."""
    return all(name is None or name in state.policies for name in (state.global_policy, project.policy, token.policy))


__all__ = ["Planner", "TokenPlans"]
