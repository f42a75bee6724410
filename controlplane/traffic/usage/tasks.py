"""
The periodic tasks of this app.

A task may run twice, even at the same time. Unique ids of batches and unique days make that harmless.
"""

import logging
from contextlib import suppress

from celery import shared_task
from django.utils import timezone
from kombu.exceptions import OperationalError

from controlplane.core.instants import no_later_than_the_database
from controlplane.objects.prices.actions import raise_addends
from controlplane.traffic.usage import checkpoints, rollup
from controlplane.traffic.usage import drain as drainer
from enforcement.store.client import STORE_ERRORS, reported

logger = logging.getLogger(__name__)


@shared_task(name="controlplane.usage.tasks.drain")
def drain() -> int:
    """
    Count the entries of the usage stream, and return how many were counted, or 0 after an error of the store. The next
    run is the retry.

    If there are many, it asks for another drain, which works beside this one if there is a place and a free process.
    """
    now = timezone.now()
    try:
        if drainer.would_refuse_all(now):
            logger.error("Usage stays in the store: the clock of this worker, or that of the store, is wrong.")
            return 0
        counted = drainer.drain(now, more=_ask_for_another).counted
        raise_addends(now)
        return counted
    except STORE_ERRORS as exc:
        logger.warning("The usage stream was not drained completely: %s", reported(exc))
        return 0


def _ask_for_another() -> None:
    with suppress(OperationalError):  # the broker is unavailable, and this drain goes on alone
        drain.apply_async(expires=2, retry=False)


@shared_task(name="controlplane.usage.tasks.checkpoint")
def checkpoint() -> int:
    """
    Save the changed durable counters, and return how many were saved, or 0 after an error of the store. The next run is
    the retry.
    """
    try:
        return checkpoints.checkpoint(timezone.now()).kept
    except STORE_ERRORS as exc:
        logger.warning("The durable counters were not saved completely: %s", reported(exc))
        return 0


@shared_task(name="controlplane.usage.tasks.prune")
def prune() -> int:
    """Delete the usage rows, batch ids and checkpoints that are no longer kept, and return their number."""
    now = no_later_than_the_database(timezone.now())
    return rollup.prune(now) + checkpoints.prune(now)
