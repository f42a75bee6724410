"""Each task may run twice, at the same time too: it writes what the store says now."""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.fleet import heartbeats
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)


@shared_task
def collect_heartbeats() -> int:
    """Save who runs and at which revision; return how many instances are live."""
    try:
        return heartbeats.collect(timezone.now())
    except STORE_ERRORS as exc:
        logger.warning("No heartbeats were read: %s", exc)
        return 0
