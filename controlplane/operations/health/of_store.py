"""Whether the store answers and has what was published, and what may be lost with it."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Count, Min

from controlplane.core import store
from controlplane.core.instants import exact
from controlplane.core.optional import COUNTERS, optional
from controlplane.objects.emergency.models import BreakGlass
from controlplane.operations.alerts.models import Steadiness
from controlplane.operations.health.condition import Condition, Level, Target, counted
from controlplane.releases.publishing.basis import last_state
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.traffic.fleet import outages
from controlplane.traffic.fleet.heartbeats import Fleet
from controlplane.traffic.usage import checkpoints
from enforcement.model.instants import duration
from enforcement.store.client import STORE_ERRORS

SLOW_MS = 100
# A change that waits longer is not on its way any more.
STUCK = timedelta(minutes=10)
UNSAVED = timedelta(hours=1)
# So long an outage that is over is shown.
REMEMBERED = timedelta(hours=24)
# A reader of the page sees that the worker publishes, and no line in between.
ON_ITS_WAY = timedelta(seconds=5)


def broken_glass(now: datetime) -> BreakGlass | None:
    """Return the glass that is broken, with ``is_pending`` set if enforcers cannot know of its last change, or None."""
    glass = BreakGlass.in_force(now)
    if glass is not None:
        glass.is_pending = OutboxEntry.objects.filter(revision=None, kind="emergency").exists()
    return glass


def of_glass(now: datetime) -> Iterator[Condition]:
    """Yield a condition if the glass is broken. Nothing is well while no limit is enforced."""
    if glass := broken_glass(now):
        pending = ", which is not published yet" if glass.is_pending else ""
        fault = f"No limit is enforced until {exact(glass.ends_at)}"
        text = f'{glass.by}, "{glass.reason}"{pending}'
        target = Target("emergency.Suspension")
        yield Condition("glass", Level.URGENT, fault, text, "Enforce again", target, glass.began_at)


def of_store(fleet: Fleet, now: datetime) -> Iterator[Condition]:
    """Ask the store, and yield a condition if it does not answer, is slow, or has another state than the database."""
    instances = Target("fleet.Instance")
    began = time.perf_counter()
    try:
        state = store.StoreState.read(store.connection(settings.PUBLISH_TIMEOUT_SECONDS))
    except STORE_ERRORS as exc:
        text = f"{store.reason_of(exc).rstrip('.')}; {counted(len(fleet), 'instance')} ran when it was last reached"
        since = Steadiness.objects.filter(number=1).values_list("away_since", flat=True).first()
        fault = "The store does not answer"
        yield Condition("store", Level.URGENT, fault, text, "See what proxies do without it", _OUTAGE, since)
        return
    took = (time.perf_counter() - began) * 1000
    if took > SLOW_MS:
        text = f"it took {took:,.0f} ms to answer, and each strict decision waits for it"
        yield Condition("store-slow", Level.LOOK, "The store is slow", text, "See the instances", instances)
    last = last_state()
    if state.name != last:
        text = f"the store is at {state.name}, the database at {last}"
        fault = "The store has another state than the database"
        yield Condition("store-state", Level.LOOK, fault, text, "See the revisions", Target("publishing.Revision"))


_OUTAGE = Target("docs", "when-redis-is-away")


def of_outage(now: datetime) -> Iterator[Condition]:
    """Yield a condition of the last outage, for a day after its end."""
    row = Steadiness.objects.filter(number=1).first()
    if row is None or row.was_away_since is None or row.was_away_until is None:
        return
    if row.was_away_until <= now - REMEMBERED:
        return
    lasted = duration(max(1, round((row.was_away_until - row.was_away_since).total_seconds())))
    alone = outages.since_hour(row.was_away_since)
    text = f"and is back; {counted(alone, 'request')} since {exact(row.was_away_since)} decided without it"
    fault, target = f"The store was away for {lasted}", Target("fleet.Instance")
    subject = f"outage|{row.was_away_since.isoformat()}"
    yield Condition(subject, Level.LOOK, fault, text, "See which instances", target, row.was_away_until)


def of_outbox(now: datetime) -> Iterator[Condition]:
    """Yield a condition if changes wait to be published."""
    pending = OutboxEntry.objects.filter(revision=None)
    found = pending.aggregate(oldest=Min("created_at"), changes=Count("change", distinct=True))
    oldest = found["oldest"]
    if oldest is None or now - oldest < ON_ITS_WAY:
        return
    stuck = now - oldest > STUCK
    are = "is" if found["changes"] == 1 else "are"
    fault = f"{counted(found['changes'], 'change')} {are} not published"
    text = "so instances go on as before"
    level = Level.URGENT if stuck else Level.LOOK
    yield Condition("outbox", level, fault, text, "See what waits", Target("publishing.OutboxEntry"), oldest)


@optional(COUNTERS, lambda now: [])
def of_quotas(now: datetime) -> list[Condition]:
    """Return a condition if the counters of long windows are not saved. A store that fails forgets what is not."""
    if not checkpoints.needed():
        return []
    run, target = checkpoints.last_run(), Target("docs", "operating")
    text = "a store that fails now forgets what was used since"
    if run is None:
        fault = "Quotas were never saved"
        return [Condition("quotas", Level.LOOK, fault, "no worker has done that yet", "Start a worker", target)]
    if now - run.at <= checkpoints.LATE:
        return []
    level = Level.URGENT if now - run.at > UNSAVED else Level.LOOK
    return [Condition("quotas", level, "Quotas are not saved", text, "Look after the worker", target, run.at)]
