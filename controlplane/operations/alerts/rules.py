"""Findings of each kind of rule in one look."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet

from controlplane.core import store
from controlplane.core.money import permits
from controlplane.objects.emergency.models import Suspension, concerning
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.projects.models import Project, Token, isoformat
from controlplane.operations.alerts import database_rules
from controlplane.operations.alerts.findings import UNKNOWN, AlertFinding, Found, subject_of
from controlplane.operations.alerts.models import EVERY_LIMIT, AlertEvent, AlertRule
from controlplane.operations.alerts.rule_kinds import (
    BROKEN,
    DENIALS,
    EXPIRING,
    FORECAST,
    LOST,
    OUTAGE,
    RESERVATIONS,
    ROLLOUT,
    SPEND,
    UNMETERED,
    UNPRICED,
    USAGE,
    WOULD_DENY,
)
from controlplane.operations.alerts.snapshot import Look
from controlplane.operations.explain.counts import window_of
from controlplane.operations.explain.holders import Held
from controlplane.operations.explain.live import Now
from controlplane.operations.explain.near import Near, nearest, share_of
from controlplane.traffic.fleet.heartbeats import live_instances, lost_instances
from controlplane.traffic.fleet.models import Instance
from enforcement.store.client import STORE_ERRORS

NAMED = 5
# Forecasts are made only above this used share. Below it, they say little.
FORETOLD_FROM = 0.25
# The most rows of one kind in one look. The next look finds the others.
MOST_ENDING = 500


def find(look: Look, rule: AlertRule) -> Found:
    """Return what a rule finds. If the store is needed and unavailable, nothing is found and nothing is over."""
    try:
        return _WATCHERS[rule.kind](look, rule)
    except STORE_ERRORS:
        return UNKNOWN


def _usage(look: Look, rule: AlertRule) -> Found:
    """Find the limits of which a threshold is reached."""
    if look.away:
        return UNKNOWN
    counters = look.counters()
    watched = [(held, count) for held, count in counters.rows if _is_watched(rule, held)]
    findings = [finding for held, count in watched if (finding := _used(rule, held, count, look.now))]
    subjects = frozenset(_subject(held) for held, _ in watched)
    return Found(findings, counters.is_whole, subjects)


def _forecast(look: Look, rule: AlertRule) -> Found:
    """Find the limits that will be used up before they reset, and soon. Those that are used up already are left out."""
    if look.away:
        return UNKNOWN
    counters = look.counters()
    watched = [(held, count) for held, count in counters.rows if _is_watched(rule, held)]
    until = look.now + timedelta(seconds=rule.within_seconds or 0)
    left = [one for one in nearest(watched, look.now, FORETOLD_FROM) if one.now.remaining]
    found = [_running_out(one, at) for one in left if one.forecast and (at := one.forecast.at) and at <= until]
    return Found(found, counters.is_whole, frozenset(_subject(held) for held, _ in watched))


def _running_out(near: Near, at: datetime) -> AlertFinding:
    held, count, name = near.held, near.now, f"{_limit_of(near.held)} of {_holder(near.held)}"
    window = window_of(held.rule.limit, at)
    basis = near.forecast.basis if near.forecast else ""
    text = f"{permits(count.remaining, held.rule.limit.unit)} are left. The forecast is made from {basis}."
    return AlertFinding(
        _subject(held),
        f"{name} will be used up on {at:%Y-%m-%d %H:%M} UTC",
        f"{name} will not be used up soon",
        1,
        window[0].isoformat() if window else "lifetime",
        window[1] if window else None,
        _project_of(held),
        {**_facts(held, count), "used_up_at": isoformat(at), "text": text},
    )


def _is_watched(rule: AlertRule, held: Held) -> bool:
    if rule.project_id and _project_of(held) != rule.project_id:
        return False
    return rule.limit in (EVERY_LIMIT, _limit_of(held))


def _project_of(held: Held) -> str | None:
    if isinstance(held.holder, Token):
        return held.holder.project_id
    return held.holder.pk if held.holder else None


def _limit_of(held: Held) -> str:
    return f"{held.rule.policy.slug}/{held.rule.limit.name}"


def _subject(held: Held) -> str:
    return subject_of(*held.key, *(held.rule.labels[name] for name in held.rule.limit.partition_by))


def _used(rule: AlertRule, held: Held, count: Now, now: datetime) -> AlertFinding | None:
    # Rounded, because a share such as 0.29 times 100 is a little less than 29.
    reached = [level for level in rule.thresholds if round(share_of(held, count) * 100, 9) >= level]
    if not reached:
        return None
    limit, level, window = held.rule.limit, reached[-1], window_of(held.rule.limit, now)
    name, unit = f"{_limit_of(held)} of {_holder(held)}", limit.unit
    shadow = ", a shadow limit," if limit.mode == "shadow" else ""
    resets_at = None if count.reset_ms is None else now + timedelta(milliseconds=count.reset_ms)
    return AlertFinding(
        _subject(held),
        f"{name}{shadow} has reached {level} %",
        f"{name} is below {rule.thresholds[0]} % again",
        level,
        "lifetime" if limit.calendar == "lifetime" else window[0].isoformat() if window else "",
        window[1] if window else None,
        _project_of(held),
        {
            **_facts(held, count),
            "resets_at": isoformat(resets_at),
            "text": f"{permits(count.used, unit)} of {permits(count.quota, unit)} are used.",
        },
    )


def _facts(held: Held, count: Now) -> dict[str, Any]:
    facts = {"limit": _limit_of(held), "quota": count.quota, "used": count.used, "remaining": count.remaining}
    whose = {"holder": held.holder.pk} if held.holder is not None else {}
    return {**facts, **whose, "unit": held.rule.limit.unit}


def _holder(held: Held) -> str:
    if held.holder is None:
        return "all requests"
    return f"{held.holder.name} ({held.holder.project})" if isinstance(held.holder, Token) else str(held.holder)


def _outage(look: Look, rule: AlertRule) -> Found:
    """Find that the store does not answer."""
    if not look.away:
        return Found([])
    titles = "The store is not reachable", "The store is reachable again"
    return Found([AlertFinding("store", *titles, data={"text": f"{look.away} {store.MEANWHILE}"})])


def _lost(look: Look, rule: AlertRule) -> Found:
    """Find the hosts with instances that send no heartbeat and have not said goodbye."""
    if not database_rules.is_settled(look):
        return UNKNOWN
    alive = {instance.pk for instance in live_instances(look.client)}
    by_host: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in lost_instances(look.now, look.client):
        if instance.pk not in alive:
            by_host[instance.host or instance.pk].append(instance)
    return Found([_lost_at(host, gone) for host, gone in sorted(by_host.items())])


def _lost_at(host: str, gone: list[Instance]) -> AlertFinding:
    names = sorted(instance.pk for instance in gone)
    last = max(instance.seen_at for instance in gone)
    count = f"{len(gone)} instance{'' if len(gone) == 1 else 's'}"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    text = f"{', '.join(names[:NAMED])}{more}, last seen {last:%Y-%m-%d %H:%M:%S} UTC."
    facts = {"host": host, "instances": names[:100], "last_seen_at": isoformat(last), "text": text}
    return AlertFinding(
        subject_of("host", host), f"{count} lost on {host}", f"No instance counts as lost on {host}", data=facts
    )


_Ending = Token | Override | Suspension | ManagementKey


def _expiring(look: Look, rule: AlertRule) -> Found:
    """Find what ends within the time of the rule and was not told of yet."""
    until, whose = look.now + timedelta(seconds=rule.within_seconds or 0), rule.project_id
    announced = AlertEvent.objects.filter(rule=rule, ends_at__gt=look.now).values("subject")
    ends: dict[str, Any] = {"expires_at__gt": look.now, "expires_at__lte": until, "revoked_at": None}
    # A token that was rotated ends because it is replaced.
    tokens = Token.objects.filter(**ends, replaced_by=None, **({"project": whose} if whose else {}))
    overrides = Override.objects.filter(ends_at__gt=look.now, ends_at__lte=until)
    if whose:
        overrides = overrides.filter(Q(project=whose) | Q(token__project=whose))
    suspensions = Suspension.objects.filter(ends_at__gt=look.now, ends_at__lte=until)
    if whose:
        suspensions = suspensions.filter(concerning(Project.objects.filter(pk=whose)))
    # A key may be of several projects, so only operators are told of it.
    keys = ManagementKey.objects.none() if whose else ManagementKey.objects.filter(**ends)
    rows: list[tuple[_Ending, datetime]] = [
        *_first(tokens.select_related("project"), announced, "expires_at"),
        *_first(overrides.select_related("limit__policy", "token__project", "project"), announced, "ends_at"),
        *_first(suspensions.select_related("token__project", "project", "within"), announced, "ends_at"),
        *_first(keys, announced, "expires_at"),
    ]
    return Found([_ending(row, ends_at) for row, ends_at in rows])


def _first[E: _Ending](rows: QuerySet[E], announced: QuerySet, column: str) -> Iterator[tuple[E, datetime]]:
    first = rows.exclude(pk__in=announced).order_by(column, "pk")[:MOST_ENDING]
    return ((row, getattr(row, column)) for row in first)


def _ending(row: _Ending, ends_at: datetime) -> AlertFinding:
    what, project = row._meta.verbose_name, None
    if isinstance(row, Token):
        project = row.project_id
    elif isinstance(row, Override):
        project = row.owner.pk
    elif isinstance(row, Suspension):
        project = row.owner_id
    name = str(row) if isinstance(row, Override | Suspension) else row.name
    text = f"It ends on {ends_at:%Y-%m-%d %H:%M} UTC."
    facts = {"object": what, "object_id": row.pk, "ends_at": isoformat(ends_at), "text": text}
    return AlertFinding(
        row.pk, f"The {what} {name} ends soon", period=ends_at.isoformat(), ends_at=ends_at, project=project, data=facts
    )


_WATCHERS: dict[str, Callable[[Look, AlertRule], Found]] = {
    USAGE: _usage,
    FORECAST: _forecast,
    DENIALS: database_rules.denials,
    WOULD_DENY: database_rules.would_deny,
    SPEND: database_rules.spend,
    RESERVATIONS: database_rules.reservations,
    EXPIRING: _expiring,
    OUTAGE: _outage,
    LOST: _lost,
    ROLLOUT: database_rules.rollout,
    UNPRICED: database_rules.unpriced,
    UNMETERED: database_rules.unmetered,
    BROKEN: database_rules.broken,
}
