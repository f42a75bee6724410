"""Findings of the kinds of rules that need only the rows of the control plane."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Sum

from controlplane.core.money import rounded
from controlplane.core.periods import start_of
from controlplane.core.zones import month_of, next_month, start_of_month
from controlplane.objects.prices.broken import lately as broken_lately
from controlplane.objects.prices.seen import MOST_SHOWN, seen_lately
from controlplane.objects.projects.models import Project, isoformat
from controlplane.operations.alerts.findings import UNKNOWN, AlertFinding, Found, subject_of
from controlplane.operations.alerts.models import AlertRule
from controlplane.operations.alerts.snapshot import Look
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reports.models import MonthMetered
from controlplane.traffic.reservations.models import ReservationCount
from controlplane.traffic.usage.models import UsageRow
from enforcement.metering.broken import MAX_PAIRS
from enforcement.store_calls.health import UNMETERED, InstanceReport, Judgement, behind, judge

# A share of fewer requests says little.
LEAST_REQUESTS = 20
# After an outage, instances need some seconds to report again.
SETTLED = timedelta(seconds=60)
NAMED = 5


def is_settled(look: Look) -> bool:
    """Return whether the store has been there for so long that every living instance has reported."""
    return look.steady_since is not None and look.now - look.steady_since >= SETTLED


def denials(look: Look, rule: AlertRule) -> Found:
    """Find the projects of which a share of the requests was denied lately."""
    return _share(look, rule, "denied", "are denied")


def would_deny(look: Look, rule: AlertRule) -> Found:
    """Find the projects of which shadow limits would have denied a share of the requests lately."""
    return _share(look, rule, "would_deny", "would be denied by shadow limits")


def _share(look: Look, rule: AlertRule, column: str, words: str) -> Found:
    since = start_of("minute", look.now - timedelta(seconds=rule.within_seconds or 0))
    rows = UsageRow.objects.filter(period="minute", at__gte=since, policy_id="", limit_name="")
    rows = rows.filter(project_id=rule.project_id) if rule.project_id else rows
    sums = rows.order_by().values("project_id").annotate(yes=Sum("allowed"), no=Sum("denied"), found=Sum(column))
    counts = {row["project_id"]: row for row in sums}
    found = []
    for project in Project.objects.filter(pk__in=counts).order_by("slug"):
        row = counts[project.pk]
        total = row["yes"] + row["no"]
        reached = [level for level in rule.thresholds if row["found"] * 100 >= level * total]
        if total < LEAST_REQUESTS or not reached:
            continue
        text = f"{row['found']:,} of {total:,} requests since {since:%Y-%m-%d %H:%M} UTC."
        facts = {"requests": total, column: row["found"], "since": isoformat(since), "text": text}
        titles = f"{reached[-1]} % of the requests of {project} {words}", f"Fewer requests of {project} {words}"
        found.append(
            AlertFinding(subject_of("project", project.pk), *titles, reached[-1], project=project.pk, data=facts)
        )
    return Found(found)


def spend(look: Look, rule: AlertRule) -> Found:
    """Find that a share of an amount is spent in the present month, by a project or by all of them together."""
    zone, whose = (rule.project.time_zone, str(rule.project)) if rule.project else ("UTC", "all projects")
    month, amount = month_of(look.now, zone), rule.amount or 0
    rows = MonthMetered.objects.filter(month=month)
    rows = rows.filter(project_id=rule.project_id) if rule.project_id else rows
    spent = rows.aggregate(sum=Sum("micros"))["sum"] or 0
    reached = [level for level in rule.thresholds if amount and spent * 100 >= level * amount]
    if not reached:
        return Found([])
    ends_at = start_of_month(next_month(month), zone)
    facts = {"spent_micros": spent, "amount_micros": amount, "month": f"{month:%Y-%m}", "resets_at": isoformat(ends_at)}
    text = f"{rounded(spent)} of {rounded(amount)} in {month:%Y-%m}."
    titles = f"{whose} spent {reached[-1]} % of {rounded(amount)}", f"A new month began for {whose}"
    finding = AlertFinding(
        *("spend", *titles, reached[-1], f"{month:%Y-%m}", ends_at, rule.project_id), data={**facts, "text": text}
    )
    return Found([finding])


def reservations(look: Look, rule: AlertRule) -> Found:
    """Find the projects with reservations that their process has lost."""
    counts = {row.project_id: row.lost for row in ReservationCount.objects.filter(lost__gt=0)}
    projects = Project.objects.filter(pk__in=counts).order_by("slug")
    projects = projects.filter(pk=rule.project_id) if rule.project_id else projects
    return Found([_lost_of(project, counts[project.pk]) for project in projects])


def _lost_of(project: Project, lost: int) -> AlertFinding:
    words = f"{lost:,} reservation{'' if lost == 1 else 's'}"
    text = (
        "Their estimates stay charged. Settle them by what the provider says, or give them back, within the time of "
        "their policies (lost_after, usually an hour). Then their estimates are final."
    )
    titles = f"{words} of {project} {'is' if lost == 1 else 'are'} lost", f"No reservation of {project} is lost"
    return AlertFinding(
        subject_of("project", project.pk), *titles, project=project.pk, data={"lost": lost, "text": text}
    )


def unpriced(look: Look, rule: AlertRule) -> Found:
    """Find the models without a price that requests asked for lately."""
    projects = Project.objects.filter(pk=rule.project_id) if rule.project_id else None
    seen = seen_lately(look.now, projects=projects)
    found = []
    for one in seen:
        if one.price is None:
            text = f"{one.requests:,} requests in 30 days. A limit of money denies them, unless it says otherwise."
            titles = f"The model {one.model} has no price", f"The model {one.model} has a price"
            facts = {"model": one.model, "requests": one.requests, "text": text}
            found.append(AlertFinding(subject_of("model", one.model), *titles, project=rule.project_id, data=facts))
    return Found(found, everything=len(seen) < MOST_SHOWN)


def broken(look: Look, rule: AlertRule) -> Found:
    """Find the models of which an answer lately used more than a bound had reserved."""
    projects = Project.objects.filter(pk=rule.project_id) if rule.project_id else None
    rows = broken_lately(look.now - timedelta(seconds=rule.within_seconds or 0), projects)
    return Found([_broken_of(rule, row) for row in rows], everything=len(rows) < MAX_PAIRS)


def _broken_of(rule: AlertRule, row: dict[str, Any]) -> AlertFinding:
    name, requests, added = f"{row['model']} ({row['format']})", row["requests"], row["added"]
    why = f"The provider adds {row['said']} by itself. " if added else ""
    text = (
        f"{requests:,} request{'' if requests == 1 else 's'} used more than was reserved, the last at "
        f"{row['last_at']:%Y-%m-%d %H:%M} UTC. {why}Budgets may have been exceeded by that."
    )
    titles = f"A bound of {name} was broken", f"No bound of {name} was broken lately"
    facts = {"model": row["model"], "format": row["format"], "requests": requests, "added_tokens": added, "text": text}
    return AlertFinding(subject_of("bound", row["model"], row["format"]), *titles, project=rule.project_id, data=facts)


def unmetered(look: Look, rule: AlertRule) -> Found:
    """Find the limits that count nothing on some instance."""
    if not is_settled(look):
        return UNKNOWN
    reports = (instance.report() for instance in Instance.objects.running(look.now))
    return Found([_unmetered_of(it) for it in judge(reports, 0) if it.kind == UNMETERED])


def _unmetered_of(judged: Judgement) -> AlertFinding:
    titles = f"The limit {judged.limit} counts nothing", f"The limit {judged.limit} counts again"
    text = f"{judged.text[:1].upper()}{judged.text[1:]}."
    return AlertFinding(subject_of("limit", judged.limit), *titles, data={"limit": judged.limit, "text": text})


def rollout(look: Look, rule: AlertRule) -> Found:
    """Find that instances lack a revision that was published some time ago."""
    if not is_settled(look):
        return UNKNOWN
    due = _due(look.now - timedelta(seconds=rule.within_seconds or 0))
    if due is None:
        return Found([])
    names = [name for it in behind(_settled(look.now), due.number) for name in it.instances]
    if not names:
        return Found([])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    text = f"{', '.join(names[:NAMED])}{more} report an earlier one."
    count = f"{len(names)} instance{'' if len(names) == 1 else 's'}"
    titles = f"Revision {due.number} is not live on {count}", "Every instance has the revision that is due"
    facts = {"revision": due.number, "instances": names[:100], "text": text}
    return Found([AlertFinding("rollout", *titles, data=facts)])


def _due(before: datetime) -> Revision | None:
    """Return the last revision that was published by then."""
    return Revision.objects.filter(published_at__lte=before).defer("changes").order_by("-number").first()


def _settled(now: datetime) -> Iterator[InstanceReport]:
    """Yield the reports of the running instances, without those that have just started and are still reading."""
    for instance in Instance.objects.running(now):
        if instance.started_at is None or now - instance.started_at >= SETTLED:
            yield instance.report()
