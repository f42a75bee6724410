"""Each task may run twice, at the same time too: an override is deleted once."""

from celery import shared_task
from django.utils import timezone

from controlplane.policies import actions
from controlplane.publishing.changes import Actor, change


# The name under which schedules and queues of earlier versions hold it.
@shared_task(name="controlplane.publishing.tasks.end_overrides")
def end_overrides() -> int:
    """Delete the overrides whose end has come; return how many."""
    with change(actor=Actor("end_overrides", "task"), reason="its end has come") as tx:
        return actions.end_overrides(tx, timezone.now())
