"""The metrics of the control plane, in the format of Prometheus."""

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Max, Min, Sum
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane.core import store
from controlplane.core.optional import COUNTERS, HEARTBEATS, error_counts, optional
from controlplane.objects.prices.models import ModelPrice
from controlplane.releases.publishing import shared_keys
from controlplane.releases.publishing.models import OutboxEntry, RepairedKey, Revision
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.reservations.listing import reservation_counts
from controlplane.traffic.stream import streams
from controlplane.traffic.usage import checkpoints
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)

# Projects with series of their own. All others share those with an empty label.
PROJECTS_SHOWN = 20


class Collected(Collector):
    """The metrics of the control plane. No label is a key or a token, so the number of series is bounded."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("sluicegate_build_info", "Always 1.", labels=["version"])
        build.add_metric([_version()], 1)
        yield build
        reachable = store.answers()
        yield _gauge("sluicegate_store_reachable", "1 if the control plane reaches the store.", reachable)
        yield from _read(COUNTERS, self._usage) if reachable else ()
        try:
            yield from self._publishing()
            yield from _read(COUNTERS, self._checkpoints)
            yield from _read(HEARTBEATS, self._fleet)
            yield from _read(COUNTERS, self._reservations)
            yield from self._prices()
            yield self._repairs()
            database = True
        except DatabaseError as exc:
            logger.warning("The database is unavailable: %s", exc)
            database = False
        yield _gauge("sluicegate_database_reachable", "1 if the control plane reaches the database.", database)
        errors = CounterMetricFamily(
            "sluicegate_source_errors",
            "Errors of what only advises, which refuse no page and no change.",
            labels=["source"],
        )
        for source, count in error_counts().items():
            errors.add_metric([source], count)
        yield errors

    def _publishing(self) -> Iterator[Metric]:
        published = Revision.objects.aggregate(last=Max("number"))["last"] or 0
        pending = OutboxEntry.objects.filter(revision=None)
        oldest = pending.aggregate(at=Min("created_at"))["at"]
        waited = (self.now - oldest).total_seconds() if oldest else 0
        yield _gauge("sluicegate_published_revision", "Number of the last published revision.", published)
        yield _gauge("sluicegate_outbox_pending", "Changes that are not published yet.", pending.count())
        yield _gauge("sluicegate_outbox_oldest_seconds", "Age of the oldest pending change.", max(0, waited))

        counted = Revision.objects.filter(is_counted=True).exclude(lag_ms=None).order_by("-number").first()
        if counted is not None:
            lag = (counted.lag_ms or 0) / 1000
            yield _gauge("sluicegate_publish_lag_seconds", "How long the last revision took to all instances.", lag)

    def _usage(self) -> Iterator[Metric]:
        """Yield metrics of the usage that waits in the store, or nothing if it cannot be read there."""
        client = store.connection(settings.PUBLISH_TIMEOUT_SECONDS)
        try:
            known = streams.streams()
        except DatabaseError:  # it knows which projects have an intake
            known = streams.shared_streams()
        try:
            lengths = streams.lengths(client, known)
            oldest_ms = streams.oldest_ms(client, lengths)
        except STORE_ERRORS:
            return
        if store.keys().usage not in {stream.key for stream in lengths}:
            return  # nothing passes there, so zeros would say that all is well
        waiting, lag = sum(lengths.values()), self.now.timestamp() - oldest_ms / 1000 if oldest_ms else 0
        yield _gauge("sluicegate_usage_waiting", "Reports of usage that are not in the database yet.", waiting)
        yield _gauge("sluicegate_drain_lag_seconds", "Age of the oldest of them, 0 without any.", max(0, lag))

    def _repairs(self) -> Metric:
        """Return a metric of the keys of the store that had to be deleted, because nobody could use them."""
        family = CounterMetricFamily(
            "sluicegate_store_keys_repaired", "Keys deleted because somebody had spoilt them.", labels=["kind"]
        )
        times = dict(RepairedKey.objects.values_list("kind").annotate(Sum("times")))
        for kind in shared_keys.KINDS:
            family.add_metric([kind], times.get(kind, 0))
        return family

    def _prices(self) -> Iterator[Metric]:
        """Yield a metric of the age of the newest price, or nothing without prices."""
        changed = ModelPrice.objects.aggregate(at=Max("changed_at"))["at"]
        if changed is not None:
            age = max(0, (self.now - changed).total_seconds())
            yield _gauge("sluicegate_price_age_seconds", "Time since a price was last changed.", age)

    def _checkpoints(self) -> Iterator[Metric]:
        """Yield metrics of the last checkpoint's age and counters, or nothing before the first checkpoint."""
        run = checkpoints.last_run()
        if run is not None:
            age = max(0, (self.now - run.at).total_seconds())
            yield _gauge("sluicegate_checkpoint_age_seconds", "Age of the last complete checkpoint in SQL.", age)
            yield _gauge("sluicegate_checkpointed_counters", "Durable counters in SQL.", run.counters)

    def _fleet(self) -> Iterator[Metric]:
        """Yield a metric of how many instances run the last revision, run an older one, or are lost."""
        alive = Instance.objects.running(self.now)
        published = Revision.objects.aggregate(last=Max("number"))["last"] or 0
        total, seen, current = Instance.objects.count(), alive.count(), alive.filter(revision__gte=published).count()
        family = GaugeMetricFamily("sluicegate_instances", "Enforcers by their state.", labels=["state"])
        for state, number in (("current", current), ("behind", seen - current), ("lost", total - seen)):
            family.add_metric([state], number)
        yield family

    def _reservations(self) -> Iterator[Metric]:
        """Yield metrics of the reservations that the store had lately, of some projects and of all others together."""
        number = GaugeMetricFamily(
            "sluicegate_reservations", "Reservations that are not settled.", labels=["project", "state"]
        )
        oldest = GaugeMetricFamily(
            "sluicegate_reservations_oldest_lost_seconds",
            "Time since the oldest lost reservation was lost, 0 without any.",
            labels=["project"],
        )
        of_token = GaugeMetricFamily(
            "sluicegate_reservations_of_token",
            "The most reservations that one token has and that are not settled.",
            labels=["project"],
        )
        for project, count in reservation_counts(PROJECTS_SHOWN):
            of_token.add_metric([project], count.of_token)
            number.add_metric([project, "open"], count.open)
            number.add_metric([project, "lost"], count.lost)
            age = (self.now - count.lost_since).total_seconds() if count.lost_since else 0
            oldest.add_metric([project], max(0, age))
        yield from (number, oldest, of_token)


def _read(source: str, metrics: Callable[[], Iterable[Metric]]) -> list[Metric]:
    """Return the metrics of a source, or none if it cannot be read. An unavailable database is another case."""
    return optional(source, list)(lambda: list(metrics()))()


def _version() -> str:
    try:
        return version("sluicegate")
    except PackageNotFoundError:
        return "unknown"  # the package is not installed, as in a plain checkout


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
