from django.db import models


class Instance(models.Model):
    """A running enforcer, as its last heartbeat described it."""

    STATES = (("starting", "starting"), ("ok", "ok"), ("degraded", "degraded"))

    id = models.CharField(primary_key=True, max_length=128)
    host = models.CharField(max_length=255, blank=True)
    pid = models.BigIntegerField(null=True)
    version = models.CharField(max_length=64, blank=True)
    revision = models.BigIntegerField(default=0)
    state = models.CharField(max_length=10, choices=STATES, default="starting")
    started_at = models.DateTimeField(null=True)
    seen_at = models.DateTimeField(db_index=True)
    degraded_since = models.DateTimeField(null=True)
    store_id = models.CharField(max_length=64, blank=True)
    decisions = models.JSONField(default=dict)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return self.id
