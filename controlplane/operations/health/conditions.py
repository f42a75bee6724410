"""
What is the matter with the installation, judged once.

The first page shows it. What instances report is judged by :mod:`enforcement.store_calls.health`, as it is for the
doctor and for alerts.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import itemgetter

from django.conf import settings
from django.db import models
from django.db.models import Min

from controlplane.core import store
from controlplane.core.instants import exact
from controlplane.core.optional import COUNTERS, HEARTBEATS, PRICES, optional
from controlplane.objects.emergency.models import BreakGlass, Suspension
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.broken import lately as broken_lately
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing import publisher
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.traffic.fleet.heartbeats import Fleet, lost_instances
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.usage import checkpoints
from enforcement.store.client import STORE_ERRORS
from enforcement.store_calls.health import BEHIND, UNMETERED, UNSUPPORTED, Judgement, judge

TOP = 5
# Instances that were lost longer ago are in the table of the fleet only.
LOST_LATELY = timedelta(hours=1)
BROKEN_LATELY = timedelta(days=1)


class Level(StrEnum):
    """How bad a condition is. What is bad needs a hand."""

    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Condition:
    """
    One condition of the installation.

    Attributes:
        name: What it is of, such as "Store".
        text: What it is, in some words.
        detail: What it means, in sentences.
        about: The rows to look at: one of them, or the model of all of them. None: there are none.
        since: The instant with which the detail ends.
    """

    name: str
    text: str
    level: Level
    detail: str
    about: models.Model | type[models.Model] | None = None
    since: datetime | None = None


def conditions(fleet: Fleet, lost: Collection[Instance], now: datetime) -> list[Condition]:
    """Return every condition of the installation, also of what is well."""
    last = publisher.last_revision()
    judged = judge((instance.report() for instance in fleet), last)
    return [
        *(*_glass(now), _store(), _outbox(), *quotas(now)),
        *(*_fleet(fleet, judged, last), *_lost(lost, fleet, now), *_bounds(now)),
        *(*_limits(judged), *_caps(fleet)),
    ]


@optional(HEARTBEATS, lambda now: [])
def lost_now(now: datetime) -> list[Instance]:
    """Return the instances that were lost within a day, or none if the store cannot say."""
    return lost_instances(now)


def broken_glass(now: datetime) -> BreakGlass | None:
    """Return the glass that is broken, with ``is_pending`` set if enforcers cannot know of its last change, or None."""
    glass = BreakGlass.in_force(now)
    if glass is not None:
        glass.is_pending = OutboxEntry.objects.filter(revision=None, kind="emergency").exists()
    return glass


def _glass(now: datetime) -> Iterator[Condition]:
    """Yield a condition if the glass is broken. Nothing is well while no limit is enforced."""
    if glass := broken_glass(now):
        text = "not published yet" if glass.is_pending else "every limit is a shadow"
        end = exact(glass.ends_at)
        said = f"Proxies go on as before, then no limit is enforced until {end}" if glass.is_pending else ""
        detail = f"{said or f'No limit is enforced until {end}'}. {glass.by}: {glass.reason}"
        yield Condition("Break glass", text, Level.BAD, detail, Suspension)


def _store() -> Condition:
    """Ask the store, and return whether it responds and has the last revision."""
    began = time.perf_counter()
    try:
        state = store.StoreState.read(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except STORE_ERRORS as exc:
        return Condition("Store", "not reachable", Level.BAD, f"{store.reason_of(exc)} {store.MEANWHILE}")
    detail = f"response time {(time.perf_counter() - began) * 1000:.1f} ms"
    last = last_state()
    if state.name != last:
        return Condition("Store", f"at {state.name}", Level.WARN, f"SQL is at {last}; {detail}")
    return Condition("Store", "reachable", Level.GOOD, f"{last}, {detail}")


def _outbox() -> Condition:
    """Return how many changes are not published yet, if any, and how old the oldest is."""
    pending = OutboxEntry.objects.filter(revision=None)
    count, oldest = pending.count(), pending.aggregate(at=Min("created_at"))["at"]
    if not count:
        return Condition("Publishing", "nothing pending", Level.GOOD, "Every change is in the store.", OutboxEntry)
    return Condition("Publishing", f"{count} pending", Level.WARN, "The oldest was saved", OutboxEntry, oldest)


@optional(COUNTERS, lambda now: [])
def quotas(now: datetime) -> list[Condition]:
    """
    Return the age of the last checkpoint, or nothing without durable counters. A store that loses its data admits the
    requests since then once more.
    """
    if not checkpoints.needed():
        return []
    run = checkpoints.last_run()
    if run is None:
        detail = "No worker has saved the counters of long windows."
        return [Condition("Quotas", "not saved yet", Level.WARN, detail)]
    text, level = ("late", Level.BAD) if now - run.at > checkpoints.LATE else ("saved", Level.GOOD)
    counters = f"{run.counters:,} counter{'' if run.counters == 1 else 's'}"
    return [Condition("Quotas", text, level, f"{counters} of a day or longer, saved", since=run.at)]


def _fleet(fleet: Fleet, judged: Iterable[Judgement], last: int) -> Iterator[Condition]:
    """Yield how many instances run the *last* revision, and how many are degraded."""
    if fleet.unknown:
        ran = f"{len(fleet)} ran when it was last reached. " if fleet else ""
        detail = f"{ran}Heartbeats come through the store, so nobody knows which instances run."
        yield Condition("Fleet", "unknown", Level.WARN, detail, Instance)
        return
    if not fleet:
        detail = "No process with the library sends a heartbeat."
        yield Condition("Fleet", "no live instance", Level.WARN, detail, Instance)
        return
    late = sum(len(it.instances) for it in judged if it.kind == BEHIND)
    level = Level.WARN if late else Level.GOOD
    yield Condition("Fleet", f"{len(fleet) - late} of {len(fleet)} current", level, f"run revision {last}", Instance)
    problems = [it for it in judged if it.level == "problem"]
    if not problems:
        yield Condition("Degraded", "none", Level.GOOD, "Every instance reaches the store.", Instance)
        return
    count = len({name for it in problems for name in it.instances})
    detail = "; ".join(f"{it.text}: {it.advice}" for it in problems)
    yield Condition("Degraded", f"{count} degraded", Level.BAD, f"{detail[:1].upper()}{detail[1:]}.", Instance)


def _lost(lost: Iterable[Instance], fleet: Fleet, now: datetime) -> Iterator[Condition]:
    """Yield a condition of the instances that were lost within the last hour, if there are any."""
    lately = [instance for instance in lost if instance.seen_at > now - LOST_LATELY]
    if lately:
        still = f"{len(fleet)} still report{'s' if len(fleet) == 1 else ''}"
        detail = f"{some_of([str(instance) for instance in lately])}. {still}. Last seen"
        last = max(instance.seen_at for instance in lately)
        yield Condition("Instances", f"{len(lately)} lost in the last hour", Level.BAD, detail, Instance, last)


@optional(PRICES, lambda now: [])
def _bounds(now: datetime) -> list[Condition]:
    """Return a condition of the models whose bounds were broken within a day, if there are any."""
    rows = broken_lately(now - BROKEN_LATELY)
    if not rows:
        return []
    names = some_of([f"{row['model']} ({row['format']})" for row in rows])
    detail = f"{names}: answers used more than was reserved, so budgets may have been exceeded."
    return [Condition("Bounds", f"{len(rows)} broken in the last day", Level.BAD, detail, ModelPrice)]


def _limits(judged: Iterable[Judgement]) -> Iterator[Condition]:
    """Yield a condition of the limits that count nothing, and one of those that instances cannot enforce, if any."""
    for kind, detail in _LIMITS.items():
        names = sorted({it.limit for it in judged if it.kind == kind})
        if names:
            yield Condition("Limits", f"{len(names)} {kind}", Level.WARN, f"{some_of(names)}: {detail}", Instance)


_LIMITS = {
    UNMETERED: "requests give no cost in their unit, so they admit everything.",
    UNSUPPORTED: "some instances cannot enforce them, so they refuse requests.",
}


def some_of(names: Collection[str]) -> str:
    """Return the first of some names, and how many others there are."""
    more = f" and {len(names) - TOP:,} more" if len(names) > TOP else ""
    return ", ".join([*names][:TOP]) + more


def _caps(fleet: Iterable[Instance]) -> Iterator[Condition]:
    """Yield a condition of each project in which a limit recently had more values than the project's cap allows."""
    full = sorted({limited for instance in fleet for limited in instance.overflowing})
    projects = Project.objects.in_bulk({project for project, _, _ in full})
    slugs = dict(Policy.objects.filter(pk__in={policy for _, policy, _ in full}).values_list("pk", "slug"))
    for project, limits in groupby(full, key=itemgetter(0)):
        if project in projects:
            names = ", ".join(f"{slugs.get(policy, policy)}/{name}" for _, policy, name in limits)
            detail = f"{names}: more values than the cap allows, so the other values share one counter."
            row = projects[project]
            yield Condition("Values", f"{row} is full", Level.WARN, detail, row)
