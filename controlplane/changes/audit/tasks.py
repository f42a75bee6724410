"""
The periodic task of this app.

A task may run twice, even at the same time. The second run waits, and continues where the first has ended.
"""

import logging

from celery import shared_task
from django.utils import timezone

from controlplane.changes.audit import chain

logger = logging.getLogger(__name__)


@shared_task(name="controlplane.audit.tasks.seal")
def seal() -> int:
    """
    Seal the audit entries that are not sealed yet, and return their number.

    The log line has the end of the chain. Logs that are kept elsewhere are what the chain can be compared with.
    """
    count = chain.seal(timezone.now())
    if count:
        logger.info("Sealed %d audit entries. The chain ends with %s.", count, chain.head())
    return count
