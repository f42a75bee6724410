"""For machines that look after machines: alive, ready, and in numbers."""

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

from controlplane.fleet.models import Instance
from controlplane.publishing import store
from controlplane.publishing.models import OutboxEntry, Revision
from controlplane.usage import checkpoints
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)


def healthz(request: HttpRequest) -> HttpResponse:
    """Say that this process answers: nothing else is asked, so that a restart is not the cure for another's fault."""
    return _json({"status": "ok"})


def readyz(request: HttpRequest) -> HttpResponse:
    """
    Say whether requests can be served: with SQL.

    Without the store changes are kept and published later, and people still look at the admin; so its absence is told
    and takes nobody off the load balancer.
    """
    database, reachable = _database_answers(), store_answers()
    state = {"database": "ok" if database else "unreachable", "store": "ok" if reachable else "unreachable"}
    status = "ok" if database and reachable else "degraded" if database else "unavailable"
    return _json({"status": status, **state}, 200 if database else 503)


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer a scrape. All of it is read now, so that every worker process gives the same numbers."""
    registry = CollectorRegistry()
    registry.register(Collected(timezone.now()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type)


def store_answers() -> bool:
    try:
        return bool(store.connection(settings.PUBLISH_TIMEOUT_SECONDS).ping())
    except STORE_ERRORS:
        return False


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as exc:
        logger.warning("The database does not answer: %s", exc)
        return False
    return True


def _json(document: dict[str, str], code: int = 200) -> HttpResponse:
    return JsonResponse(document, status=code, headers={"Cache-Control": "no-store"})


class Collected(Collector):
    """The control plane's numbers; no label is a key, a token or anything else that grows with use."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("sluicegate_build_info", "Always 1.", labels=["version"])
        build.add_metric([_version()], 1)
        yield build
        yield _gauge("sluicegate_store_reachable", "1 if the store answers the control plane.", store_answers())
        try:
            yield from [*self._publishing(), *self._checkpoints(), self._fleet()]
            database = True
        except DatabaseError as exc:
            logger.warning("The database does not answer: %s", exc)
            database = False
        yield _gauge("sluicegate_database_reachable", "1 if the database answers the control plane.", database)

    def _publishing(self) -> Iterator[Metric]:
        published = Revision.objects.aggregate(last=Max("number"))["last"] or 0
        pending = OutboxEntry.objects.filter(revision=None)
        oldest = pending.aggregate(at=Min("created_at"))["at"]
        waited = (self.now - oldest).total_seconds() if oldest else 0
        yield _gauge("sluicegate_published_revision", "Number of the last published revision.", published)
        yield _gauge("sluicegate_outbox_pending", "Changes that are not published yet.", pending.count())
        yield _gauge("sluicegate_outbox_oldest_seconds", "For how long the oldest of them has waited.", max(0, waited))

    def _checkpoints(self) -> Iterator[Metric]:
        """Nothing before the first: there is no age of what never was."""
        run = checkpoints.last_run()
        if run is not None:
            age = max(0, (self.now - run.at).total_seconds())
            yield _gauge("sluicegate_checkpoint_age_seconds", "Since all durable counters were last kept in SQL.", age)
            yield _gauge("sluicegate_checkpointed_counters", "Durable counters that SQL keeps.", run.counters)

    def _fleet(self) -> Metric:
        """An instance is behind when it runs an older revision than the last one."""
        alive = Instance.objects.running(self.now)
        published = Revision.objects.aggregate(last=Max("number"))["last"] or 0
        total, seen, current = Instance.objects.count(), alive.count(), alive.filter(revision__gte=published).count()
        family = GaugeMetricFamily("sluicegate_instances", "Enforcers by what is known of them.", labels=["state"])
        for state, number in (("current", current), ("behind", seen - current), ("lost", total - seen)):
            family.add_metric([state], number)
        return family


def _version() -> str:
    try:
        return version("sluicegate")
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that was never installed


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
