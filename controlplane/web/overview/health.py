"""The health of the installation, as facts. Those that need a hand come to the top of the Overview."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

from django.conf import settings
from django.db.models import Min
from django.utils.html import format_html, format_html_join

from controlplane.core import store
from controlplane.core.instants import exact
from controlplane.core.optional import COUNTERS, HEARTBEATS, PRICES, optional
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.broken import lately as broken_lately
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.traffic.fleet.heartbeats import Fleet, lost_instances
from controlplane.traffic.fleet.models import DEGRADED, OK, Instance
from controlplane.traffic.usage import checkpoints
from controlplane.web.kit.site import badge, change_url, instant, link_to, list_url
from controlplane.web.pages.emergency.banner import broken_glass
from controlplane.web.pages.fleet import state_of
from enforcement.store.client import STORE_ERRORS
from enforcement.store_calls.health import BEHIND, UNMETERED, UNSUPPORTED, Judgement, judge

TOP = 5
INSTANCES_SHOWN = 12
# Instances that were lost longer ago are in the table of the fleet only.
LOST_LATELY = timedelta(hours=1)
BROKEN_LATELY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Fact:
    """
    One fact, its state in words, and what it means.

    ``kind`` is "good", "warn" or "bad". Those that are bad need a hand.
    """

    name: str
    text: str
    kind: str
    detail: str
    url: str = ""

    @property
    def state(self) -> str:
        return badge(self.text, self.kind)


def facts(fleet: Fleet, lost: list[Instance], now: datetime) -> list[Fact]:
    """Return every fact on the health of the installation."""
    last = publisher.last_revision()
    judged = judge((instance.report() for instance in fleet), last)
    return [
        *(*glass_health(now), store_health(), outbox_health(now), *_quotas(now)),
        *(*fleet_health(fleet, judged, last), *lost_health(lost, fleet, now), *_bounds(now)),
        *(*limit_health(judged), *cap_health(fleet)),
    ]


@optional(HEARTBEATS, lambda now: [])
def lost_now(now: datetime) -> list[Instance]:
    """Return the instances that were lost within a day, or none if the store cannot say."""
    return lost_instances(now)


def glass_health(now: datetime) -> Iterable[Fact]:
    """Yield a fact if the glass is broken. Nothing is well while no limit is enforced."""
    if glass := broken_glass(now):
        text = "not published yet" if glass.is_pending else "every limit is a shadow"
        end = exact(glass.ends_at)
        said = f"Proxies go on as before, then no limit is enforced until {end}" if glass.is_pending else ""
        detail = f"{said or f'No limit is enforced until {end}'}. {glass.by}: {glass.reason}"
        yield Fact("Break glass", text, "bad", detail, list_url(Suspension))


def store_health() -> Fact:
    """Ask the store, and return a fact on whether it responds and has the last revision."""
    began = time.perf_counter()
    try:
        state = store.StoreState.read(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except STORE_ERRORS as exc:
        return Fact("Store", "not reachable", "bad", f"{store.reason_of(exc)} {store.MEANWHILE}")
    detail = f"response time {(time.perf_counter() - began) * 1000:.1f} ms"
    last = last_state()
    if state.name != last:
        return Fact("Store", f"at {state.name}", "warn", f"SQL is at {last}; {detail}")
    return Fact("Store", "reachable", "good", f"{last}, {detail}")


def outbox_health(now: datetime) -> Fact:
    """Return a fact on how many changes are not published yet, if any, and how old the oldest is."""
    pending = OutboxEntry.objects.filter(revision=None)
    count, oldest = pending.count(), pending.aggregate(at=Min("created_at"))["at"]
    url = list_url(OutboxEntry)
    if not count:
        return Fact("Publishing", "nothing pending", "good", "Every change is in the store.", url)
    detail = format_html("The oldest was saved {}.", instant(oldest, now))
    return Fact("Publishing", f"{count} pending", "warn", detail, url)


@optional(COUNTERS, lambda now: [])
def _quotas(now: datetime) -> list[Fact]:
    return list(quota_health(now))


def quota_health(now: datetime) -> Iterable[Fact]:
    """
    Yield a fact with the age of the last checkpoint, or nothing without durable counters. A store that loses its data
    admits the requests since then once more.
    """
    if not checkpoints.needed():
        return
    run = checkpoints.last_run()
    if run is None:
        yield Fact("Quotas", "not saved yet", "warn", "No worker has saved the counters of long windows.")
        return
    late = now - run.at > checkpoints.LATE
    counters = f"{run.counters:,} counter{'' if run.counters == 1 else 's'}"
    detail = format_html("{} of a day or longer, saved {}", counters, instant(run.at, now))
    yield Fact("Quotas", "late" if late else "saved", "bad" if late else "good", detail)


def fleet_health(fleet: Fleet, judged: Iterable[Judgement], last: int) -> Iterable[Fact]:
    """Yield facts on how many instances run the *last* revision, and how many are degraded."""
    url = list_url(Instance)
    if fleet.unknown:
        ran = f"{len(fleet)} ran when it was last reached. " if fleet else ""
        detail = f"{ran}Heartbeats come through the store, so nobody knows which instances run."
        yield Fact("Fleet", "unknown", "warn", detail, url)
        return
    if not fleet:
        yield Fact("Fleet", "no live instance", "warn", "No process with the library sends a heartbeat.", url)
        return
    late = sum(len(it.instances) for it in judged if it.kind == BEHIND)
    kind = "warn" if late else "good"
    yield Fact("Fleet", f"{len(fleet) - late} of {len(fleet)} current", kind, f"run revision {last}", url)
    problems = [it for it in judged if it.level == "problem"]
    if problems:
        count = len({name for it in problems for name in it.instances})
        detail = "; ".join(f"{it.text}: {it.advice}" for it in problems)
        yield Fact("Degraded", f"{count} degraded", "bad", f"{detail[:1].upper()}{detail[1:]}.", url)
    else:
        yield Fact("Degraded", "none", "good", "Every instance reaches the store.", url)


def lost_health(lost: list[Instance], fleet: Fleet, now: datetime) -> Iterator[Fact]:
    """Yield a fact on the instances that were lost within the last hour, if there are any."""
    lately = [instance for instance in lost if instance.seen_at > now - LOST_LATELY]
    if not lately:
        return
    names = format_html_join(", ", "{}", ((link_to(it),) for it in lately[:TOP]))
    more = f" and {len(lately) - TOP} more" if len(lately) > TOP else ""
    last = instant(max(instance.seen_at for instance in lately), now)
    still = len(fleet)
    reports = f"{still} still report{'s' if still == 1 else ''}."
    detail = format_html("{}{}, last seen {}. {}", names, more, last, reports)
    yield Fact("Instances", f"{len(lately)} lost in the last hour", "bad", detail, list_url(Instance))


@optional(PRICES, lambda now: [])
def _bounds(now: datetime) -> list[Fact]:
    return list(bound_health(now))


def bound_health(now: datetime) -> Iterable[Fact]:
    """Yield a fact on the models whose bounds were broken within a day, if there are any."""
    rows = broken_lately(now - BROKEN_LATELY)
    if rows:
        names = _some([f"{row['model']} ({row['format']})" for row in rows])
        detail = f"{names}: answers used more than was reserved, so budgets may have been exceeded."
        yield Fact("Bounds", f"{len(rows)} broken in the last day", "bad", detail, list_url(ModelPrice))


def limit_health(judged: Iterable[Judgement]) -> Iterable[Fact]:
    """Yield a fact on the limits that count nothing, and one on those that instances cannot enforce, if any."""
    for kind, detail in _LIMITS.items():
        names = sorted({it.limit for it in judged if it.kind == kind})
        if names:
            yield Fact("Limits", f"{len(names)} {kind}", "warn", f"{_some(names)}: {detail}", list_url(Instance))


_LIMITS = {
    UNMETERED: "requests give no cost in their unit, so they admit everything.",
    UNSUPPORTED: "some instances cannot enforce them, so they refuse requests.",
}


def _some(names: list[str]) -> str:
    return ", ".join(names[:TOP]) + (f" and {len(names) - TOP} more" if len(names) > TOP else "")


def cap_health(fleet: list[Instance]) -> Iterable[Fact]:
    """Yield a fact for each project in which a limit recently had more values than the project's cap allows."""
    full = sorted({limited for instance in fleet for limited in instance.overflowing})
    projects = Project.objects.in_bulk({project for project, _, _ in full})
    slugs = dict(Policy.objects.filter(pk__in={policy for _, policy, _ in full}).values_list("pk", "slug"))
    for project, limits in groupby(full, key=itemgetter(0)):
        if project in projects:
            names = ", ".join(f"{slugs.get(policy, policy)}/{name}" for _, policy, name in limits)
            detail = f"{names}: more values than the cap allows, so the other values share one counter."
            yield Fact("Values", f"{projects[project]} is full", "warn", detail, change_url(projects[project]))


def fleet_rows(fleet: Fleet, lost: list[Instance], now: datetime) -> list[dict[str, Any]]:
    """Return the first rows of the table of instances as dictionaries, the lost ones and those with a problem first."""
    # A large fleet does not fit here.
    worst = sorted(fleet, key=lambda instance: (instance.state == OK, instance.revision, instance.id))
    gone = [_fleet_row(row, format_html("{} {}", badge("lost", "bad"), instant(row.seen_at, now))) for row in lost]
    here = [_fleet_row(row, state_of(row, None if fleet.unknown else True)) for row in worst]
    return [*gone, *here][:INSTANCES_SHOWN]


def _fleet_row(row: Instance, state: str) -> dict[str, Any]:
    alone = row.decisions.get("fallback", 0)
    fields = {"host": row.host, "revision": row.revision, "version": row.version}
    return {"link": link_to(row), "state": state, "alone": alone if row.state == DEGRADED else 0, **fields}
