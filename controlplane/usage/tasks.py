"""Each task may run twice, at the same time too: unique batch ids and days settle it."""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.usage import checkpoints, report, rollup
from controlplane.usage import drain as drainer
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)


@shared_task
def drain() -> int:
    """Count what enforcers reported, and return how many entries; the next run is the retry."""
    try:
        return drainer.drain(timezone.now()).counted
    except STORE_ERRORS as exc:
        logger.warning("Usage was not drained to its end: %s", exc)
        return 0


@shared_task
def checkpoint() -> int:
    """Keep the durable counters that changed, and return how many; the next run is the retry."""
    try:
        return checkpoints.checkpoint(timezone.now()).kept
    except STORE_ERRORS as exc:
        logger.warning("Durable counters were not kept: %s", exc)
        return 0


@shared_task
def prune() -> int:
    """Delete what is older than it is kept; return how many rows."""
    now = timezone.now()
    return rollup.prune(now) + checkpoints.prune(now)


@shared_task
def daily_reports() -> list[str]:
    """Write the reports of past days that are missing, or that late usage has changed; return the days."""
    return [day.isoformat() for day in report.write_missing(timezone.now())]
