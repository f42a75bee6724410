from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone

from controlplane.objects.keys.models import ManagementKey

MAX_NAME = 255
KEPT = timedelta(hours=24)
# The work after a commit takes less time. After that, its process is dead.
ENDING = timedelta(seconds=30)


class KeptAnswerQuerySet(models.QuerySet["KeptAnswer"]):
    def ended(self, now: datetime) -> "KeptAnswerQuerySet":
        """Return a query of the answers that are no longer kept."""
        return self.filter(created_at__lte=now - KEPT)


class KeptAnswer(models.Model):
    """
    The response to a change over REST that named an idempotency key.

    The row exists before the change, so that repetitions can lock it, and gets its response in the transaction of the
    change. A change that failed leaves a row without a response, which the next attempt takes over.

    Attributes:
        owner: The management key that made the request. Others may use the same name for something else.
        name: The idempotency key.
        fingerprint: SHA-256 of method, address and body. It is empty until the change is committed.
        status: Status of the response, or null while there is none.
        headers: The headers that belong to the response's object.
        body: The response's JSON, in which every secret is null.
        change: The id of the change, which leads to its revision.
        reach: The ids of the projects that the key could see then, or null for all of them.
    """

    owner = models.ForeignKey(ManagementKey, models.CASCADE, related_name="+")
    name = models.CharField(max_length=MAX_NAME)
    fingerprint = models.CharField(max_length=64, blank=True)
    status = models.PositiveSmallIntegerField(null=True)
    headers = models.JSONField(default=dict)
    body = models.TextField(blank=True)
    change = models.CharField(max_length=40, blank=True)
    reach = models.JSONField(null=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    objects = KeptAnswerQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["owner", "name"], name="idempotency_name_once")]

    def __str__(self) -> str:
        return self.name

    def kept_status(self, now: datetime) -> int | None:
        """Return the status of the response that is still kept, or None if there is none."""
        return self.status if self.created_at > now - KEPT else None

    def is_ending(self, now: datetime) -> bool:
        """Return whether the change is committed, and a process still does what follows the commit."""
        return self.status is None and bool(self.fingerprint) and self.created_at > now - ENDING
