"""Each task may run twice, at the same time too: the audit settles it."""

from celery import shared_task
from django.utils import timezone

from controlplane.projects import expiry


@shared_task
def expire_tokens() -> int:
    """Say which tokens have ended; return how many."""
    return expiry.expire_tokens(timezone.now())
