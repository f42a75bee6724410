"""The periodic task of this app. It may run twice, even at the same time."""

from celery import shared_task
from django.utils import timezone

from controlplane.web.restkit.idempotency.models import KeptAnswer


@shared_task(name="controlplane.idempotency.tasks.prune_answers")
def prune_answers() -> int:
    """Delete the answers that are no longer kept, and return their number."""
    return KeptAnswer.objects.ended(timezone.now()).delete()[0]
