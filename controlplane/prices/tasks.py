"""The periodic task of this app. It may run twice, even at the same time, see learn_factors()."""

import logging

from celery import shared_task
from django.core.exceptions import ValidationError
from django.utils import timezone

from controlplane.prices import actions
from controlplane.publishing.changes import Actor

logger = logging.getLogger(__name__)


@shared_task
def learn_factors() -> int:
    """Learn and publish the factors of models, and return how many have changed."""
    try:
        _, found = actions.learn_factors(Actor("learn_factors", "task"), timezone.now(), "learned from usage")
    except ValidationError as exc:
        logger.error("The factors of models were not changed: %s", " ".join(exc.messages))
        return 0
    for one in found:
        logger.info("Factor of %s", one)
    return len(found)
