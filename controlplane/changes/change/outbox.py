"""What was changed and must be published."""

from django.db import models
from django.utils import timezone


class OutboxEntry(models.Model):
    """An object that was changed and must be published. The entry names the object, and not its state."""

    NAMES = ("policy", "project", "token", "global", "prices", "emergency", "intakes", "all", "epoch", "reset")
    KINDS = tuple((name, name) for name in NAMES)

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=10, choices=KINDS)
    # The id of a policy or project, the digest of a token, or the JSON of a reset that enforcers read.
    object_id = models.CharField(max_length=1000, blank=True)
    by = models.CharField(max_length=200, blank=True)
    channel = models.CharField(max_length=10, blank=True)
    # The id of the change that made the entry. Empty if the reconciler made it.
    change = models.CharField(max_length=40, blank=True, default="", db_default="", db_index=True)
    created_at = models.DateTimeField(default=timezone.now)
    revision = models.ForeignKey("publishing.Revision", models.CASCADE, null=True, related_name="outbox")

    class Meta:
        app_label = "publishing"
        ordering = ["id"]
        verbose_name_plural = "outbox entries"
        indexes = [models.Index(fields=["id"], condition=models.Q(revision=None), name="publishing_outbox_pending")]

    def __str__(self) -> str:
        return f"{self.kind} {self.object_id}"
