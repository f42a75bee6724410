"""
The periodic task of this app.

A task may run twice, even at the same time. It writes the present state of the store.
"""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.fleet import heartbeats
from controlplane.publishing import acknowledgements
from enforcement.store.client import STORE_ERRORS, reported

logger = logging.getLogger(__name__)


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
