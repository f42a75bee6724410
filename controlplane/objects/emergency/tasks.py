"""
The periodic tasks of this app.

A task may run twice, even at the same time. A glass and a suspension end once.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.objects.emergency import actions


@shared_task(name="controlplane.emergency.tasks.end_glass")
def end_glass() -> bool:
    """Take back the document of a glass whose end is over, and return whether there was one."""
    return actions.end_glass(timezone.now())


@shared_task(name="controlplane.emergency.tasks.end_suspensions")
def end_suspensions() -> int:
    """Take back the suspensions whose end is over, and return their number."""
    return actions.end_suspensions(timezone.now())
