"""The explanation of one decision, put together from documents, usage, samples and live counters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import redis

from controlplane.changes.audit.models import AuditEntry
from controlplane.core.optional import COUNTERS, optional
from controlplane.objects.emergency.models import BreakGlass
from controlplane.operations.explain import counts, live, past
from controlplane.operations.explain.emergencies import glass_at, suspension_of
from controlplane.operations.explain.matches import NO, UNKNOWN, YES, Matched, matched
from controlplane.operations.explain.question import Case, Reach
from controlplane.releases.publishing.models import Revision
from controlplane.releases.publishing.publisher import last_revision
from controlplane.traffic.fleet.models import Instance
from enforcement.model.instants import from_us, to_us
from enforcement.plan.rules import Subject

CUT = "~"
# The reasons for which a request is denied because of a limit.
OF_A_LIMIT = ("limited", "cost_exceeds_capacity", "degraded_denied", "unpriced_model", "unmetered")


@dataclass(frozen=True, slots=True)
class Source:
    """
    Where a quota comes from.

    Attributes:
        kind: "policy" or "override".
        id: The id of the override.
        reason, by: Why and by whom the override was made, if the audit still says so.
    """

    kind: str
    id: str = ""
    ends_at: datetime | None = None
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """
    One limit in the order in which limits are checked.

    Attributes:
        decided: Whether this is the limit that denied.
        counted: The counts of usage in the period of the request. None: nothing is kept, or the asker may not see it.
        used: Permits charged to its window up to the end of the minute. None: it cannot be told from usage.
        now: The counter now. None: it has none, does not match, or the asker may not see it.
        quota_now: Its quota now. None: it does not apply any more.
        result: "denied", "also_denied", "would_deny", "passed", "no_match" or "unknown".
    """

    match: Matched
    decided: bool
    source: Source
    counted: Mapping[str, int] | None
    used: int | None
    now: live.Now | None
    quota_now: int | None
    source_now: Source | None
    result: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    All that is known of one decision.

    Attributes:
        lines: The limits that applied, in order. Empty if no limit was asked.
        missing: Which documents of the revision are not known. They are taken from the present ones, if there are.
        period: The finest period of the request of which usage is kept.
        total: The decisions about the token in that period. None: there is no usage.
        passes_now: Whether the same request would pass now. None: not known.
        refusal: Why no limit would be asked now, in words. Empty if limits decide.
        full: The limits without room now.
        store_away: Whether the counters could not be read.
        glass, glass_then: The broken glass under which no limit denies now, and the one of the time of the request.
    """

    case: Case
    now: datetime
    lines: tuple[Line, ...]
    missing: tuple[str, ...]
    period: counts.Period
    total: Mapping[str, int] | None
    revision_now: int
    changes: list[Revision] = field(default_factory=list)
    change_count: int = 0
    passes_now: bool | None = None
    refusal: str = ""
    full: tuple[str, ...] = ()
    store_away: bool = False
    instance: Instance | None = None
    glass: BreakGlass | None = None
    glass_then: BreakGlass | None = None

    @property
    def decided(self) -> Line | None:
        """The limit that denied, or None if none did or it is not known."""
        return next((line for line in self.lines if line.decided), None)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The reasons that would deny the same request now."""
        return (self.refusal,) if self.refusal else self.full

    @property
    def unknown(self) -> list[Line]:
        return [line for line in self.lines if line.match.matches == UNKNOWN]


def explain(case: Case, reach: Reach, now: datetime, client: redis.Redis) -> Explanation:
    """Return the explanation of a case. An unavailable store is part of it."""
    period = counts.period_of(case.at, now)
    instance = _instance(case) if reach.everything else None
    if case.project is None:
        return Explanation(case, now, (), (), period, None, last_revision(), instance=instance)
    present = past.now_for(case, now)
    state = past.then_for(case, present)
    then = _matched(state.subject, case, case.at)
    today = {one.identity: one for one in _matched(present, case, now)}
    away, counters = _live(client, today, case, now, reach)
    lines = _lines(case, then, today, period, counters, now, reach)
    changes, count = past.changes_since(case, [state.subject, present])
    glass, refusal = glass_at(now), _refusal(case, present)
    passes: bool | None
    full: tuple[str, ...]
    if refusal or glass:  # no limit denies while the glass is broken
        passes, full = not refusal, ()
    else:
        passes, full = _would_pass(today, counters, away)
    return Explanation(
        case=case,
        now=now,
        lines=lines,
        missing=state.missing,
        period=period,
        total=counts.total_of(case, period),
        revision_now=last_revision(),
        changes=changes,
        change_count=count,
        passes_now=passes,
        refusal=refusal,
        full=full,
        store_away=away,
        instance=instance,
        glass=glass,
        glass_then=glass_at(case.at),
    )


def _matched(subject: Subject | None, case: Case, at: datetime) -> list[Matched]:
    return matched(subject, case.attributes, to_us(at)) if subject else []


@optional(COUNTERS, lambda *_: (True, {}))
def _live(
    client: redis.Redis, today: Mapping[Any, Matched], case: Case, now: datetime, reach: Reach
) -> tuple[bool, dict[tuple[str, str, str], live.Now]]:
    """Return whether counters cannot be read, and those that the asker may see."""
    # A global limit counts all projects together, also for each value of an attribute, which anybody may name.
    seen = [one for one in today.values() if one.scope != "global" or reach.everything]
    return False, live.counters(client, seen, case.attributes, to_us(now))


def _lines(
    case: Case,
    then: list[Matched],
    today: Mapping[Any, Matched],
    period: counts.Period,
    counters: Mapping[Any, live.Now],
    now: datetime,
    reach: Reach,
) -> tuple[Line, ...]:
    counted = counts.of_limits(case, then, period, reach)
    used = counts.used_until(case, then, now, reach)
    sources = _Sources([one for one in (*then, *today.values()) if one.rule])
    lines = []
    for one in then:
        present = today.get(one.identity)
        decided = is_deciding(case, one)
        numbers = counted.get(one.identity)
        lines.append(
            Line(
                match=one,
                decided=decided,
                source=sources.of(one),
                counted=numbers,
                used=used.get(one.identity),
                now=counters.get(one.identity),
                quota_now=present.limit.quota if present else None,
                source_now=sources.of(present) if present else None,
                result=_result(one, decided, numbers, period),
            )
        )
    return tuple(lines)


def is_deciding(case: Case, one: Matched) -> bool:
    """Return whether a limit is the one that the decision names, in the sample by its id or in the decision id."""
    if case.sample and case.sample.limit_name:
        return (case.sample.policy_id, case.sample.limit_name) == (one.policy_id, one.limit.name)
    name = case.facts.limit if case.facts else ""
    return bool(name) and (one.name.endswith(name[1:]) if name.startswith(CUT) else one.name == name)


def _result(one: Matched, decided: bool, counted: Mapping[str, int] | None, period: counts.Period) -> str:
    if decided:
        return "denied"
    if one.matches == NO:
        return "no_match"
    if counted is None or period.name != "minute":
        return "unknown"
    if counted["denied"]:
        return "also_denied"
    if counted["would_deny"]:
        return "would_deny"
    return "passed" if one.matches == YES else "unknown"


class _Sources:
    """Finds where quotas come from, with one query for all overrides."""

    def __init__(self, found: list[Matched]) -> None:
        ids = {one.rule.override_id for one in found if one.rule and one.rule.override_id}
        entries = AuditEntry.objects.filter(object_type="override", object_id__in=ids, after__isnull=False)
        self._entries = {entry.object_id: entry for entry in entries.order_by("at", "id")} if ids else {}

    def of(self, one: Matched) -> Source:
        rule = one.rule
        if rule is None or rule.override_id is None:
            return Source("policy")
        entry = self._entries.get(rule.override_id)
        ends_at = from_us(rule.ends_at_us) if rule.ends_at_us is not None else None
        reason = (entry.after or {}).get("reason", "") if entry else ""
        return Source("override", rule.override_id, ends_at, reason, entry.actor if entry else "")


def _would_pass(
    today: Mapping[Any, Matched], counters: Mapping[Any, live.Now], away: bool
) -> tuple[bool | None, tuple[str, ...]]:
    """Return whether the limits would let the same request with the cost 1 pass now, and which would not."""
    enforced = [one for one in today.values() if one.limit.mode == "enforce" and one.matches != NO]
    full = tuple(one.name for one in enforced if one.identity in counters and not counters[one.identity].remaining)
    if full:
        return False, full
    unread = any(one.identity not in counters for one in enforced)
    return (None if away or unread else True), ()


def _refusal(case: Case, present: Subject | None) -> str:
    """Return in words why no limit would be asked now, or an empty string."""
    if case.token is None and case.token_id:
        return "the token is deleted"
    if case.token and not case.token.is_live:
        return f"the token is {case.token.status}"
    if case.project and not case.project.active:
        return "the project is inactive"
    return suspension_of(case, present) or ("" if present else "enforcers do not know the token")


def _instance(case: Case) -> Instance | None:
    """Return the instance that decided, if it is one of the last two days. Its name may be cut in the id."""
    name = (case.sample.instance if case.sample else "") or (case.facts.instance if case.facts else "")
    if not name:
        return None
    if name.startswith(CUT):
        found = list(Instance.objects.filter(pk__endswith=name[1:])[:2])
        return found[0] if len(found) == 1 else None
    return Instance.objects.filter(pk=name).first()
