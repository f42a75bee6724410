"""The endpoints for monitoring, which are /healthz, /readyz and /metrics."""

import logging

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from controlplane.core import store
from controlplane.core.requests import came_through_unknown_proxy, client_address
from controlplane.operations.monitoring.metrics import Collected
from enforcement.http.addresses import TrustedProxies

logger = logging.getLogger(__name__)

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
    database, reachable = _database_answers(), store.answers()
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
