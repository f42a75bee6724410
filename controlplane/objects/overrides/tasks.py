"""
The periodic task of this app.

A task may run twice, even at the same time. An override is ended once.
"""

from celery import shared_task
from django.utils import timezone

from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.overrides import actions


# The task keeps its name of version 0.2.0, which schedules and queued messages contain.
@shared_task(name="controlplane.publishing.tasks.end_overrides")
def end_overrides() -> int:
    """End the overrides whose end has come, and return their number."""
    with change(actor=Actor("end_overrides", "task"), reason="expired") as tx:
        return actions.end_overrides(tx, timezone.now())
