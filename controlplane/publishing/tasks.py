"""Each task may run twice, at the same time too: the publisher's lock and revision settle it."""

import logging
from datetime import timedelta

from celery import shared_task
from django.utils import timezone

from controlplane.publishing import publisher, verbs
from controlplane.publishing import reconcile as reconciler
from controlplane.publishing.changes import Actor, change
from controlplane.publishing.models import OutboxEntry
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)

# Long enough to look into what went wrong last month; the revisions themselves are kept.
OUTBOX_KEPT = timedelta(days=30)


@shared_task
def publish_pending() -> int | None:
    """Publish what a request could not; the next run is its own retry."""
    try:
        return publisher.publish_pending()
    except (*STORE_ERRORS, publisher.Postponed) as exc:
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
    except (*STORE_ERRORS, publisher.Postponed) as exc:
        logger.warning("Nothing was reconciled: %s", exc)
        return []


@shared_task
def end_overrides() -> int:
    """Delete the overrides whose end has come; return how many."""
    with change(actor=Actor("end_overrides", "task"), reason="its end has come") as tx:
        return verbs.end_overrides(tx, timezone.now())


@shared_task
def prune_outbox() -> int:
    """Delete entries that were published a month ago; return how many."""
    old = OutboxEntry.objects.filter(revision__published_at__lt=timezone.now() - OUTBOX_KEPT)
    return old.delete()[0]
