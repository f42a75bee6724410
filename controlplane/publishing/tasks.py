"""Each task may run twice, at the same time too: the publisher's lock and revision settle it."""

import logging

import redis
from celery import shared_task

from controlplane.publishing import publisher
from controlplane.publishing import reconcile as reconciler

logger = logging.getLogger(__name__)


@shared_task
def publish_pending() -> int | None:
    """Publish what a request could not; the next run is its own retry."""
    try:
        return publisher.publish_pending()
    except (redis.RedisError, publisher.Refused) as exc:
        logger.warning("Nothing was published: %s", exc)
        return None


@shared_task
def reconcile() -> list[str]:
    return _reconcile(full=False)


@shared_task
def reconcile_fully() -> list[str]:
    return _reconcile(full=True)


def _reconcile(*, full: bool) -> list[str]:
    try:
        return reconciler.reconcile(full=full)
    except (redis.RedisError, publisher.Refused) as exc:
        logger.warning("Nothing was reconciled: %s", exc)
        return []
