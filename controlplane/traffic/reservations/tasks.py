"""
The periodic tasks of this app.

A task may run twice, even at the same time. Unique ids and conditional updates make that harmless.
"""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.traffic.reservations import recording
from enforcement.store.client import STORE_ERRORS, reported

logger = logging.getLogger(__name__)


@shared_task(name="controlplane.reservations.tasks.record_lost")
def record_lost() -> int:
    """
    Save lost reservations, and return how many are new, or 0 after an error of the store. The next run is the retry.
    """
    try:
        return recording.record(timezone.now())
    except STORE_ERRORS as exc:
        logger.warning("The reservations were not read completely: %s", reported(exc))
        return 0


@shared_task(name="controlplane.reservations.tasks.settle_overdue")
def settle_overdue() -> int:
    """
    Settle those as their estimate that are lost for as long as their policies say, and return their number, or 0 after
    an error of the store. The next run is the retry.
    """
    try:
        return recording.settle_overdue(timezone.now())
    except STORE_ERRORS as exc:
        logger.warning("The lost reservations were not settled: %s", reported(exc))
        return 0


@shared_task(name="controlplane.reservations.tasks.prune")
def prune() -> int:
    """Delete the settled reservations that are no longer kept, and return their number."""
    return recording.prune(timezone.now())
