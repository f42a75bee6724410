"""
The periodic tasks of this app.

A task may run twice, even at the same time. Of two looks at the same time, only one decides.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.operations.alerts import acknowledging, events, run, usual


@shared_task(name="controlplane.alerts.tasks.evaluate")
def evaluate() -> int:
    """Look once for all active rules, those of every new installation too, and return the number of new events."""
    usual.add_usual()
    return run.evaluate(timezone.now())


@shared_task(name="controlplane.alerts.tasks.prune")
def prune() -> int:
    """Delete the events that have been over for 90 days, and mutes that have ended, and return the number of events."""
    acknowledging.prune(timezone.now())
    return events.prune(timezone.now())
