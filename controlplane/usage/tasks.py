"""Each task may run twice, at the same time too: unique batch ids settle it."""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.usage import drain as drainer
from controlplane.usage import rollup
from enforcement.store import STORE_ERRORS

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
def prune() -> int:
    """Delete what is older than it is kept; return how many rows."""
    return rollup.prune(timezone.now())
