"""The periodic task of this app. It may run twice, even at the same time, because each row is folded once."""

from celery import shared_task
from django.utils import timezone

from controlplane.traffic.callers import recording


@shared_task(name="controlplane.preview.tasks.fold")
def fold() -> int:
    """Fold the recorded minutes into their days, delete old days, and return the number of minutes."""
    now = timezone.now()
    folded = recording.fold(now)
    recording.prune(now)
    return folded
