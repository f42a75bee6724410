"""The entries of the audit."""

from functools import partial
from typing import Any

from django.db import models
from django.utils import timezone

from controlplane.changes.audit.seals import AuditSeal as AuditSeal
from controlplane.core.ids import new_id


class AppendOnly(TypeError):
    """Raised on an attempt to change or delete an audit entry."""


class AuditQuerySet(models.QuerySet):
    def update(self, **fields: object) -> int:
        raise AppendOnly("Audit entries must not be changed.")

    def delete(self) -> tuple[int, dict[str, int]]:
        raise AppendOnly("Audit entries are never deleted.")


class AuditEntry(models.Model):
    CHANNELS = (("admin", "admin"), ("api", "API"), ("command", "command"), ("task", "task"))

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "aud"), editable=False)
    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.CharField(max_length=200)
    channel = models.CharField(max_length=10, choices=CHANNELS)
    action = models.CharField(max_length=64)
    object_type = models.CharField(max_length=32)
    object_id = models.CharField(max_length=64)
    object_label = models.CharField(max_length=300)
    before = models.JSONField(null=True, blank=True)
    after = models.JSONField(null=True, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    request_id = models.CharField(max_length=128, blank=True)
    # The id of the change that wrote this entry, perhaps with others. Empty for entries of 0.2.0, whose processes may
    # still write some during an upgrade.
    change = models.CharField(max_length=40, blank=True, default="", db_default="", db_index=True)
    # The id of the project whose members may read this entry. Only operators read an entry without one.
    project = models.CharField(max_length=40, blank=True, default="", db_default="", editable=False)

    objects = AuditQuerySet.as_manager()

    class Meta:
        # The app in which its table began.
        app_label = "policies"
        ordering = ["-at", "-id"]
        verbose_name_plural = "audit entries"
        indexes = [
            models.Index(fields=["object_type", "object_id", "-at"]),
            # The filters of REST, each in the order of its pages.
            models.Index(fields=["actor", "-id"], name="policies_audit_actor"),
            models.Index(fields=["action", "-id"], name="policies_audit_action"),
            models.Index(fields=["object_id", "-id"], name="policies_audit_object"),
            # The search for a request.
            models.Index(fields=["request_id"], name="policies_audit_request", condition=~models.Q(request_id="")),
            # The entries that the members of a project see.
            models.Index(fields=["project", "-at", "-id"], name="policies_audit_project"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.object_label}"

    def save(self, *args: Any, **options: Any) -> None:
        """Insert a new entry, or raise AppendOnly if the entry is saved already."""
        if not self._state.adding:
            raise AppendOnly("Audit entries must not be changed.")
        super().save(*args, **{**options, "force_insert": True})

    def delete(self, *args: object, **options: object) -> tuple[int, dict[str, int]]:
        raise AppendOnly("Audit entries are never deleted.")
