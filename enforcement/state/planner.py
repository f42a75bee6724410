"""
Find the plan of a request.

Limits in code are found by their key, published policies by the token of the request. Requests without a token, where
they are admitted, are found by the project that they count for. A plan is compiled once and kept until the documents
change.

A token whose limits look at no attributes, or only at its labels, has one plan for all its requests. Any other token
has a plan for each set of attribute values, in a cache that all tokens share (:mod:`enforcement.state.plan_cache`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, Final

from enforcement.logs import RateLimitedLogger
from enforcement.model.documents import TokenDocument
from enforcement.model.keys import Keys
from enforcement.model.limits import Limit
from enforcement.model.matching import LABEL_PREFIX, Attributes, Match, check_attributes
from enforcement.model.metered import BODY_ATTRIBUTES, DEFAULT_METERING, DENY, METERED_UNITS, Metering
from enforcement.model.partitions import RETRY_SECONDS
from enforcement.model.sizes import MAX_TOKEN_LENGTH
from enforcement.model.tokens import Anonymous, digest, is_well_formed
from enforcement.plan.binding import Limits, bind_pairs, pairs_of, several_of
from enforcement.plan.decision import Decision
from enforcement.plan.decision_ids import DecisionIds
from enforcement.plan.plan import RefusedPlan
from enforcement.plan.rules import Rule, Subject, as_shadow, rules_of
from enforcement.settings import ENFORCE, OFF, SHADOW
from enforcement.state.live_plan import HiddenLimit, LivePlan, PartLeases
from enforcement.state.parts import LeaseMaker
from enforcement.state.plan_cache import PlanCache
from enforcement.state.published import DerivedPlans, PublishedState, Snapshot
from enforcement.state.recent_limits import RecentLimits
from enforcement.state.token_cache import AnonymousEntry, TokenEntry
from enforcement.state.token_plans import SuspendingPlans, TokenPlans
from enforcement.state.unmetered import UnmeteredLimits
from enforcement.store_calls.emergency import Values, is_in_force, last_end
from enforcement.store_calls.instances import GLOBAL
from enforcement.usage.counts import UsageLog

MAX_PLANS: Final = 10_000

_NOTHING: Final[Attributes] = {}
_SCHEME: Final = "bearer "

logger = logging.getLogger("sluicegate.limiter")


class Planner:
    """
    Finds the plan of each request of one process.

    Args:
        now_us: Returns the estimated time of the store, microseconds since the epoch.
        fleet: Returns how many processes share the limits. None if no permits may be leased.
        leases: Gives plans their leases.
        ids: Makes the ids of decisions. None: they have none.
        mode: What happens to limits in code, one of :data:`~enforcement.settings.IN_CODE`.

    Attributes:
        in_code: Plans of limits in code, by key and limits.
        plan_cache: Plans of requests with attributes.
        unmetered: Limits that requests give no cost for.
        unsupported: Limits that this process cannot enforce, so that it refuses requests under them.
    """

    def __init__(
        self,
        keys: Keys,
        documents: PublishedState,
        usage: UsageLog,
        now_us: Callable[[], int],
        *,
        fleet: Callable[[], int] | None,
        leases: LeaseMaker,
        ids: DecisionIds | None = None,
        mode: str = ENFORCE,
    ) -> None:
        self.in_code: OrderedDict[tuple[object, ...], LivePlan] = OrderedDict()
        self.plan_cache = PlanCache()
        self.unmetered = UnmeteredLimits()
        self.unsupported = RecentLimits()
        self._keys = keys
        self._documents = documents
        self._usage = usage
        self._now_us = now_us
        self._fleet = fleet
        self._leases = leases
        self._ids = ids
        self.mode = self._mode = mode
        self._anonymous: dict[str, AnonymousEntry] = {}
        self._by_slug: tuple[int, dict[str, str]] = (-1, {})
        self._say = RateLimitedLogger(logger)

    def plans(self) -> Iterator[LivePlan]:
        """Yield all plans that are kept, and their parts, in each cache the latest first."""
        made = (entry.plan for entry in reversed([*self._anonymous.copy().values(), *self._documents.entries()]))
        of_tokens = (it.always for it in made if type(it) is TokenPlans and it.always is not None)
        # They stay in the order in which they were made, which a plain dict yields in a fiftieth of the time.
        in_code = reversed(list(dict.values(self.in_code)))
        for plan in chain(in_code, of_tokens, self.plan_cache.plans()):
            yield plan
            yield from (part.plan for part in plan.parts or ())
            if type(plan.lease) is PartLeases:
                yield from plan.lease.plans()

    def clear(self) -> None:
        """Drop all plans in a child process, because their leases belong to the parent."""
        self.in_code.clear()
        self._leases.clear()
        self.plan_cache.clear()
        self.unmetered.clear()
        self.unsupported.clear()

    def plan_in_code(self, limits: Limits, key: str | None) -> LivePlan:
        """
        Return the cached plan of limits in code for a key or for their own keys, or a new one.

        Raises:
            ValueError, TypeError: See :func:`~enforcement.plan.binding.bind_pairs` and ``pairs_of()`` beside it.
        """
        # Hashing an id is faster than hashing a Limit. The plan keeps the limits alive, so no other object gets the id.
        name: tuple[object, ...]
        if isinstance(limits, Limit):
            name = key, id(limits)
        elif key is not None:
            if not isinstance(limits, (list, tuple)):
                limits = several_of(limits)
            name = key, *map(id, limits)
        else:
            pairs = limits = pairs_of(limits, None)
            name = tuple((own, *map(id, several)) for several, own in pairs)
        plan = self.in_code.get(name)
        if plan is None:
            mode, bounds = self.mode, bind_pairs(pairs_of(limits, key), self._keys)
            if mode == OFF:
                bounds = ()
            elif mode == SHADOW:
                bounds = tuple(replace(bound, limit=as_shadow(bound.limit)) for bound in bounds)
            plan = self._leases.lend(LivePlan(bounds, fleet=self._fleet, ids=self._ids))
            self.in_code[name] = plan
            if mode != self.mode:
                self.in_code.pop(name, None)  # the glass was broken or mended meanwhile
            if len(self.in_code) > MAX_PLANS:
                self.in_code.popitem(last=False)
        return plan

    def follow_glass(self) -> None:
        """Make limits in code shadows while the glass is broken, and drop their plans when that begins or ends."""
        broken = self._documents.current.emergency.is_glass_broken(self._now_us())
        mode = SHADOW if broken and self._mode == ENFORCE else self._mode
        if mode != self.mode:
            self.mode = mode
            self.in_code.clear()

    def find(self, token: object) -> TokenEntry | Decision | str:
        """
        Return the entry of a token from memory, a denial if it cannot be a token, or the digest to ask the store for.

        Args:
            token: As the client sent it, or Anonymous.
        """
        if not isinstance(token, str) or len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            return self._without_token(token) if isinstance(token, Anonymous) else self.refusal("unknown_token")
        name = digest(token)
        entry = self._documents.find(name)
        if entry is not None:
            return entry
        if is_well_formed(token):
            return name
        if token[: len(_SCHEME)].lower() == _SCHEME:
            self._say.warning("scheme", "A token begins with 'Bearer '. Give check() only what follows it.")
        return self.refusal("unknown_token")

    def looked_at(self, token: object) -> frozenset[str]:
        """Return the names of the attributes that the limits of a token look at. It is empty for one without plans."""
        entry = self.find(token)
        plans = None if isinstance(entry, (str, Decision)) else entry.plan
        if not isinstance(plans, TokenPlans):
            return frozenset()
        return frozenset(name for rule in plans.rules for name in (*rule.limit.match.names(), *rule.varies_by))

    def _without_token(self, request: Anonymous) -> TokenEntry | Decision:
        """Return the entry of the requests without a token of a project, or a denial if the project is not known."""
        documents = self._documents
        generation, ids = self._by_slug
        if generation != documents.generation:
            generation = documents.generation
            ids = {project.slug: project.id for project in documents.current.projects.values()}
            self._by_slug = generation, ids
        project = ids.get(request.project)
        if project is None:
            return self.refusal("unknown_project" if documents.loaded else "degraded_denied")
        entry = self._anonymous.get(project)
        if entry is None:
            # Two threads must not count with different entries.
            entry = self._anonymous.setdefault(project, AnonymousEntry(project))
        return entry

    def lacks(self, token: TokenDocument) -> bool:
        """Return whether the project or a policy of a token is missing in the documents of this process."""
        state = self._documents.current
        project = state.projects.get(token.project)
        return project is None or not _complete(Subject(project, token, state.policies, state.global_policy, False))

    def plan_of(self, entry: TokenEntry, attributes: Attributes | None) -> LivePlan | Decision:
        """
        Return the plan of a request with this token, or a denial if the token may not be used.

        Args:
            attributes: Attributes of the request by name. None or an empty mapping if it has none.
        Raises:
            ValueError: The attributes are not a small mapping of strings.
        """
        token = entry.token
        if token is None:
            return self.refusal("degraded_denied" if entry.problem else "unknown_token")
        subject = token.project, token.id
        plans = entry.plan
        if plans is None or entry.generation != self._documents.generation:
            plans = self._compile(entry)
        if isinstance(plans, Decision):
            if is_in_force(plans.suspended_until_us, self._now_us()):
                return self._again(plans, subject)
            plans = self._compile(entry)
            if isinstance(plans, Decision):
                return self._again(plans, subject)
        if token.expires_at_us is not None and self._now_us() >= token.expires_at_us:
            return self.refusal("expired", subject)
        if plans.until_us is not None and self._now_us() >= plans.until_us:
            plans = self._compile(entry)
            if isinstance(plans, Decision):  # a document has come since
                return self._again(plans, subject)
        if plans.always is not None:
            return plans.always
        return plans.plan(check_attributes(attributes) if attributes else _NOTHING, self._keys, self.plan_cache)

    @staticmethod
    def keep_plan(derived: DerivedPlans, token: object, entry: TokenEntry, plan: LivePlan | Decision) -> None:
        """
        Add a token's plan to *derived*, if it is the same for every request until the documents change.

        Args:
            derived: The plans kept for one generation of the documents, read before the token was looked up. If the
                documents have changed since, this object is already unused, and the outdated plan is dropped with it.
        """
        plans = entry.plan
        if type(plans) is TokenPlans and plans.always is plan and plans.until_us is None and plans.never_expires:
            derived.keep(token, plan)

    def refusal(self, reason: str, subject: tuple[str, str] = ("", "")) -> Decision:
        """
        Return a new denial, with this reason, for which no counter was read.

        Args:
            subject: The ids of the project and of the token, if they are known.
        """
        source = "fallback" if reason == "degraded_denied" else "documents"
        revision = self._documents.current.revision
        return Decision(False, reason, source, RefusedPlan(revision=revision, ids=self._ids, subject=subject))

    def _again(self, denial: Decision, subject: tuple[str, str]) -> Decision:
        """Return a denial for the same reason, because each is a decision of its own."""
        return self.refusal(denial.reason, subject).until(denial.suspended_until_us, self._now_us())

    def _suspension(self, ends: Iterable[int | None], subject: tuple[str, str] = ("", "")) -> Decision:
        """Return a new denial because of some suspensions, until the last of them ends."""
        return self.refusal("suspended", subject).until(last_end(ends), self._now_us())

    def merged(self, plans: Sequence[LivePlan]) -> LivePlan:
        """Return one plan with the counters of several plans of one token, each of them once."""
        first = plans[0]
        bounds = tuple({bound.key: bound for plan in plans for bound in plan.bounds}.values())
        if len(bounds) == len(first.bounds):
            return first
        name = (None if first.name is None else first.name[0], "merged", *(plan.name for plan in plans))
        plan = self.plan_cache.get(name)
        if plan is None:
            plan = self._leases.lend(
                LivePlan(
                    bounds, revision=first.revision, usage=first.usage, fleet=self._fleet, name=name, ids=self._ids
                )
            )
            plan.metering, plan.hidden = first.metering, first.hidden
            plan.registered_until = self.plan_cache.trusted(plan)
            if not plan.unregistered or plan.registered_until > monotonic():
                self.plan_cache.put(name, plan)
        return plan

    def registered(self, plan: LivePlan, overflowed: Sequence[int]) -> LivePlan:
        """
        Return the plan itself, or one with overflow counters where values had no room, and keep it for later requests.

        Args:
            overflowed: For each of ``plan.unregistered``, 1 if the value uses the overflow counter, 0 if it has a
                counter of its own.
        """
        assert plan.name is not None  # only values of published policies are registered
        assert plan.usage is not None
        if not any(overflowed):
            self.plan_cache.admit(plan.name, plan)
            return plan
        bounds = plan.diverted(overflowed)
        name = (plan.name[0], "beyond", *(bound.key for bound in bounds))
        shared = self.plan_cache.get(name)
        if shared is None:
            shared = self._leases.lend(
                LivePlan(bounds, revision=plan.revision, usage=plan.usage, fleet=self._fleet, name=name, ids=self._ids)
            )
            self.plan_cache.put(name, shared)
        shared.metering, shared.hidden = plan.metering, plan.hidden
        shared.retry_at = monotonic() + RETRY_SECONDS
        self.plan_cache.divert(plan.name, shared)
        self.plan_cache.overflowed += 1
        for bound in shared.bounds:
            if bound.overflow:
                self.plan_cache.full.note((plan.usage.project, bound.policy_id, bound.limit.name), monotonic())
        return shared

    def _compile(self, entry: TokenEntry) -> TokenPlans | Decision:
        token, generation, state = entry.token, self._documents.generation, self._documents.current
        assert token is not None
        now_us = self._now_us()  # read last, as a clock that goes back starts another generation
        project = state.projects.get(token.project)
        anonymous = type(entry) is AnonymousEntry
        subject = None
        if project is not None:
            holder = None if anonymous else token
            subject = Subject(project, holder, state.policies, state.global_policy, anonymous)
        if token.revoked:
            made: TokenPlans | Decision = self.refusal("revoked")
        elif ends := state.emergency.suspensions(token, now_us):
            made = self._suspension(ends)
        elif project is None or subject is None or not _complete(subject):
            # A document is not loaded yet, or cannot be read. Its limits are unknown, so nothing can be admitted.
            made = self.refusal("degraded_denied")
        elif not state.emergency.is_active(project):
            made = self.refusal("inactive_project")
        elif anonymous and project.anonymous_policy is None:
            made = self.refusal("token_required")
        elif self._documents.lacks_global and (limits := _global_limits(state)):
            # The store would refuse the whole call, and without it each process would admit by its own count.
            for limit in limits:
                self.unsupported.note((project.id, limit[0], limit[1], GLOBAL), monotonic())
            made = self.refusal("degraded_denied")
        else:
            made = self._plans_of(entry, subject, now_us, state)
        if type(made) is type(entry.plan) is TokenPlans and made.always and entry.plan.always:
            made.always.continue_from(entry.plan.always)
        entry.plan, entry.generation = made, generation
        return made

    def _plans_of(self, entry: TokenEntry, subject: Subject, now_us: int, state: Snapshot) -> TokenPlans | Decision:
        assert entry.token is not None
        rules, emergency = rules_of(subject, now_us), state.emergency
        if emergency.is_glass_broken(now_us):
            rules = tuple(replace(rule, limit=as_shadow(rule.limit)) for rule in rules)
        changes_at_us = emergency.glass_changes_at_us(now_us)
        # Then the plans are made again, even if no document arrives.
        ends = [] if changes_at_us is None else [changes_at_us]
        units = [(r.policy.id, r.limit.name, r.limit.unit) for r in rules]
        usage = self._usage.of(entry, units)
        testers = tuple(rule.limit.match.compile(rule.limit.partition_by) for rule in rules)
        ends += chain.from_iterable(rule.ends_us for rule in rules)
        always, metering, suspended = None, metering_of(rules), emergency.values_in(entry.token.project, now_us)
        ends += [end for values in suspended.values() for end in values.values() if end is not None]
        if not any(testers) and not suspended:
            bounds = tuple(rule.bind(self._keys, _NOTHING) for rule in rules)
            always = self._leases.lend(
                LivePlan(bounds, revision=state.revision, usage=usage, fleet=self._fleet, ids=self._ids)
            )
            always.metering = metering
        made: dict[str, Any] = {
            "rules": rules,
            "revision": state.revision,
            "usage": usage,
            "until_us": min(ends, default=None),
            "never_expires": entry.token.expires_at_us is None,
            "always": always,
            "testers": testers,
            "indexes": tuple(rule.partitions(self._keys) for rule in rules),
            "hidden": tuple(_hidden(rule.limit) for rule in rules if _is_hidden(rule.limit)),
            "metering": metering,
            "fleet": self._fleet,
            "leases": self._leases,
            "ids": self._ids,
        }
        return self._suspending(entry.token, made, suspended) if suspended else TokenPlans(**made)

    def _suspending(
        self, token: TokenDocument, made: Mapping[str, Any], suspended: Values
    ) -> SuspendingPlans | Decision:
        """Return the plans of a token while values are suspended, or a denial if one of its labels has such a value."""
        refuse = partial(self._suspension, subject=(token.project, token.id))
        by_label = [(suspended.get(LABEL_PREFIX + name, {}), value) for name, value in token.labels.items()]
        if ends := [values[value] for values, value in by_label if value in values]:
            return refuse(ends)
        if not BODY_ATTRIBUTES.isdisjoint(suspended):
            # Doors that meter read bodies then, whatever the limits look at, and refuse what may hide such a value.
            metering = tuple(dict.fromkeys(rule.policy.metering for rule in made["rules"])) or (DEFAULT_METERING,)
            hidden = (*made["hidden"], HiddenLimit(lambda attributes: True, is_metered=False))
            made = {**made, "metering": made["metering"] or metering, "hidden": hidden}
        return SuspendingPlans(**made, suspended=suspended, refuse=refuse)


def _global_limits(state: Snapshot) -> list[tuple[str, str]]:
    """Return the slug of the global policy with the name of each of its limits, in a new list."""
    policy = state.policies.get(state.global_policy or "")
    return [] if policy is None else [(policy.slug, limit.name) for limit in policy.limits]


def metering_of(rules: Sequence[Rule]) -> tuple[Metering, ...] | None:
    """
    Return the rules for metered requests of the policies that these limits belong to, each once, or None if no limit
    needs a meter.
    """
    if not any(_needs_meter(rule.limit) for rule in rules):
        return None
    return tuple(dict.fromkeys(rule.policy.metering for rule in rules))


def _needs_meter(limit: Limit) -> bool:
    """Return whether a limit counts tokens or money, or looks at an attribute that only a meter reads."""
    return limit.unit in METERED_UNITS or _reads_the_body(limit)


def _reads_the_body(limit: Limit) -> bool:
    return not BODY_ATTRIBUTES.isdisjoint({*limit.partition_by, *limit.match.attributes})


def _is_hidden(limit: Limit) -> bool:
    """
    Return whether a limit denies what no meter can read, and may not match it for that same reason, or because of the
    way in which its path is written.
    """
    by_path = limit.unit in METERED_UNITS and (limit.match.path or limit.match.methods)
    return limit.unmetered == DENY and not limit.shadow and bool(by_path or _reads_the_body(limit))


def _hidden(limit: Limit) -> HiddenLimit:
    """Return whether a limit may apply to a request, whatever its body says."""
    rules = {name: rule for name, rule in limit.match.attributes.items() if name not in BODY_ATTRIBUTES}
    names = tuple(name for name in limit.partition_by if name not in BODY_ATTRIBUTES)
    exact, folded = (
        Match(limit.match.methods, path, rules, published=True).compile(names)
        for path in (limit.match.path, limit.match.path.lower())
    )
    return HiddenLimit(exact or (lambda attributes: True), limit.unit in METERED_UNITS, folded)


def _complete(subject: Subject) -> bool:
    """Return whether all policies of a subject are loaded."""
    return all(policy is None or policy in subject.policies for *_, policy in subject.attached())
