"""The endpoints for monitoring, which are /healthz, /readyz and /metrics."""

import logging
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Max, Min
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from controlplane.core import store
from controlplane.core.requests import came_through_unknown_proxy, client_address
from controlplane.fleet.models import Instance
from controlplane.publishing.models import OutboxEntry, Revision
from controlplane.reservations.listing import reservation_counts
from controlplane.usage import checkpoints
from enforcement.http.addresses import TrustedProxies
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)

# Projects with series of their own. All others share those with an empty label.
PROJECTS_SHOWN = 20

NO_METRICS = (
    "Metrics are for the networks in SLUICEGATE_METRICS_NETWORKS. If a proxy forwarded this request, its network must "
    "be in SLUICEGATE_TRUSTED_PROXIES.\n"
)


def healthz(request: HttpRequest) -> HttpResponse:
    """
    Return a response with status 200 while this process responds.

    Nothing else is checked, because a restart of this process would not repair the store or the database.
    """
    return _json({"status": "ok"})


def readyz(request: HttpRequest) -> HttpResponse:
    """
    Return a response with status 200 if requests can be served, which needs the database, else 503.

    Without the store, changes are saved and published later, and the admin still works. So an unavailable store is
    reported, but the process stays behind the load balancer.
    """
    database, reachable = _database_answers(), store_answers()
    state = {"database": "ok" if database else "unreachable", "store": "ok" if reachable else "unreachable"}
    status = "ok" if database and reachable else "degraded" if database else "unavailable"
    return _json({"status": status, **state}, 200 if database else 503)


def metrics(request: HttpRequest) -> HttpResponse:
    """
    Return a response with all metrics, or with status 403 if the client is not in one of the METRICS_NETWORKS.

    The numbers are read at the time of the request, so every process returns the same ones.
    """
    if not _may_read_metrics(request):
        return HttpResponse(NO_METRICS, status=403, content_type="text/plain; charset=utf-8")
    registry = CollectorRegistry()
    registry.register(Collected(timezone.now()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type)


def _may_read_metrics(request: HttpRequest) -> bool:
    if came_through_unknown_proxy(request):
        return False  # the peer is that proxy, and anyone may be behind it
    return TrustedProxies(settings.METRICS_NETWORKS).trusts(client_address(request))


def store_answers() -> bool:
    """Return whether the store responds in the time that a request may wait."""
    try:
        return bool(store.connection(settings.PUBLISH_TIMEOUT_SECONDS).ping())
    except STORE_ERRORS:
        return False


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as exc:
        logger.warning("The database is unavailable: %s", exc)
        return False
    return True


def _json(document: dict[str, str], code: int = 200) -> HttpResponse:
    return JsonResponse(document, status=code, headers={"Cache-Control": "no-store"})


class Collected(Collector):
    """The metrics of the control plane. No label is a key or a token, so the number of series is bounded."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("sluicegate_build_info", "Always 1.", labels=["version"])
        build.add_metric([_version()], 1)
        yield build
        yield _gauge("sluicegate_store_reachable", "1 if the control plane reaches the store.", store_answers())
        try:
            yield from [*self._publishing(), *self._checkpoints(), self._fleet(), *self._reservations()]
            database = True
        except DatabaseError as exc:
            logger.warning("The database is unavailable: %s", exc)
            database = False
        yield _gauge("sluicegate_database_reachable", "1 if the control plane reaches the database.", database)

    def _publishing(self) -> Iterator[Metric]:
        published = Revision.objects.aggregate(last=Max("number"))["last"] or 0
        pending = OutboxEntry.objects.filter(revision=None)
        oldest = pending.aggregate(at=Min("created_at"))["at"]
        waited = (self.now - oldest).total_seconds() if oldest else 0
        yield _gauge("sluicegate_published_revision", "Number of the last published revision.", published)
        yield _gauge("sluicegate_outbox_pending", "Changes that are not published yet.", pending.count())
        yield _gauge("sluicegate_outbox_oldest_seconds", "Age of the oldest pending change.", max(0, waited))

    def _checkpoints(self) -> Iterator[Metric]:
        """Yield metrics of the last checkpoint's age and counters, or nothing before the first checkpoint."""
        run = checkpoints.last_run()
        if run is not None:
            age = max(0, (self.now - run.at).total_seconds())
            yield _gauge("sluicegate_checkpoint_age_seconds", "Age of the last complete checkpoint in SQL.", age)
            yield _gauge("sluicegate_checkpointed_counters", "Durable counters in SQL.", run.counters)

    def _fleet(self) -> Metric:
        """Return a metric of how many instances run the last revision, run an older one, or are lost."""
        alive = Instance.objects.running(self.now)
        published = Revision.objects.aggregate(last=Max("number"))["last"] or 0
        total, seen, current = Instance.objects.count(), alive.count(), alive.filter(revision__gte=published).count()
        family = GaugeMetricFamily("sluicegate_instances", "Enforcers by their state.", labels=["state"])
        for state, number in (("current", current), ("behind", seen - current), ("lost", total - seen)):
            family.add_metric([state], number)
        return family

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
        for project, count in reservation_counts(PROJECTS_SHOWN):
            number.add_metric([project, "open"], count.open)
            number.add_metric([project, "lost"], count.lost)
            age = (self.now - count.lost_since).total_seconds() if count.lost_since else 0
            oldest.add_metric([project], max(0, age))
        yield from (number, oldest)


def _version() -> str:
    try:
        return version("sluicegate")
    except PackageNotFoundError:
        return "unknown"  # the package is not installed, as in a plain checkout


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
