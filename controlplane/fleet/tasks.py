"""
The periodic task of this app.

A task may run twice, even at the same time. It writes the present state of the store.
"""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.fleet import heartbeats
from enforcement.store.client import STORE_ERRORS, reported

logger = logging.getLogger(__name__)


@shared_task
def collect_heartbeats() -> int:
    """Save the heartbeats of all instances, and return the number of live ones, or 0 if the store is unavailable."""
    try:
        return heartbeats.collect(timezone.now())
    except STORE_ERRORS as exc:
        logger.warning("The heartbeats could not be read: %s", reported(exc))
        return 0
