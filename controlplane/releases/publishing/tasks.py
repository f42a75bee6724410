"""
The periodic tasks of this app.

A task may run twice, even at the same time. The lock and the revision of the publisher make that harmless.
"""

import logging
from datetime import timedelta

from celery import shared_task
from django.utils import timezone

from controlplane.releases.publishing import acknowledgements, kept, publisher, shared_keys
from controlplane.releases.publishing import reconcile as reconciler
from controlplane.releases.publishing.models import OutboxEntry, Work
from controlplane.traffic.fleet import heartbeats
from enforcement.store.client import STORE_ERRORS, reported

logger = logging.getLogger(__name__)

# Long enough to look into errors of the last weeks. The revisions themselves are kept.
OUTBOX_KEPT = timedelta(days=30)


@shared_task(name="controlplane.publishing.tasks.publish_pending")
def publish_pending() -> int | None:
    """
    Publish the pending changes, and return the number of the last new revision, or None without one. The next run is
    the retry.
    """
    if not Work.is_pending():
        return None  # the usual case costs one query, and no command
    try:
        return publisher.publish_pending(in_slices=True)
    except (*STORE_ERRORS, publisher.Postponed) as exc:
        logger.warning("Nothing was published: %s", reported(exc))
        return None


@shared_task(name="controlplane.publishing.tasks.reconcile")
def reconcile() -> list[str]:
    """Repair the differences between the store and SQL that are cheap to find, and return a line for each repair."""
    return _reconcile(full=False)


@shared_task(name="controlplane.publishing.tasks.reconcile_fully")
def reconcile_fully() -> list[str]:
    """Compare and repair every document and token, and return a line for each repair."""
    return _reconcile(full=True)


def _reconcile(*, full: bool) -> list[str]:
    try:
        return [*shared_keys.repair(timezone.now()), *reconciler.reconcile(full=full)]
    except (*STORE_ERRORS, publisher.Postponed) as exc:
        logger.warning("Nothing was reconciled: %s", reported(exc))
        return []


@shared_task(name="controlplane.publishing.tasks.prune_outbox")
def prune_outbox() -> int:
    """Delete the entries that were published over a month ago, and return their number."""
    old = OutboxEntry.objects.filter(revision__published_at__lt=timezone.now() - OUTBOX_KEPT)
    return old.delete()[0]


@shared_task(name="controlplane.publishing.tasks.prune_documents")
def prune_documents() -> int:
    """Delete the documents that were replaced so long ago that they are no longer kept, and return their number."""
    return kept.prune(timezone.now())


@shared_task(name="controlplane.fleet.tasks.collect_heartbeats")
def collect_heartbeats() -> int:
    """
    Save the heartbeats of all instances and which revisions they run, and return the number of live instances, or 0 if
    the store is unavailable.
    """
    now = timezone.now()
    try:
        count = heartbeats.collect(now)
    except STORE_ERRORS as exc:
        logger.warning("The heartbeats could not be read: %s", reported(exc))
        return 0
    acknowledgements.note(now)
    return count
