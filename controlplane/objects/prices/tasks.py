"""The periodic tasks of this app. They may run twice, even at the same time."""

import logging

from celery import shared_task
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.changes.change.transaction import Actor
from controlplane.objects.prices import actions
from controlplane.objects.prices.unseen import publish_week as publish
from enforcement.store.client import STORE_ERRORS, reported

logger = logging.getLogger(__name__)


@shared_task(name="controlplane.prices.tasks.learn_estimates")
def learn_estimates() -> int:
    """Learn and publish numbers for estimates, and return how many have changed."""
    try:
        _, found = actions.learn_estimates(Actor("learn_estimates", "task"), timezone.now(), "learned from usage")
    except ValidationError as exc:
        logger.error("The numbers for estimates were not changed: %s", " ".join(exc.messages))
        return 0
    for one in found:
        logger.info("Estimate of %s", one)
    return len(found)


@shared_task(name="controlplane.prices.tasks.publish_week")
def publish_week() -> int:
    """
    Tell the doctor of last week's requests without the provider's last word, and return their number, or 0 after an
    error of the store.
    """
    try:
        return publish(timezone.now())["requests"]
    except STORE_ERRORS as exc:
        logger.warning("The doctor was not told of last week: %s", reported(exc))
        return 0
