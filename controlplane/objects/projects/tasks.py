"""
The periodic task of this app.

A task may run twice, even at the same time. The audit entries show what is already done.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.objects.projects import expiry


@shared_task(name="controlplane.projects.tasks.expire_tokens")
def expire_tokens() -> int:
    """Write an audit entry for each newly expired token, and return their number."""
    return expiry.expire_tokens(timezone.now())
