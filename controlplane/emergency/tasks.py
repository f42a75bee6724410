"""
The periodic task of this app.

A task may run twice, even at the same time. A glass ends once.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.emergency import actions


@shared_task
def end_glass() -> bool:
    """Take back the document of a glass whose end is over, and return whether there was one."""
    return actions.end_glass(timezone.now())
