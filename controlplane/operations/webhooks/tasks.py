"""
The periodic tasks of this app.

A task may run twice, even at the same time. A message is claimed by one of them.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.operations.webhooks import deliveries


@shared_task(name="controlplane.webhooks.tasks.deliver")
def deliver() -> int:
    """Send the messages that are due, and return the number of attempts."""
    return deliveries.run()


@shared_task(name="controlplane.webhooks.tasks.prune")
def prune() -> int:
    """Delete the messages that arrived or were given up over a month ago, and return their number."""
    return deliveries.prune(timezone.now())
