from functools import partial
from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.objects.people.roles import ROLES
from controlplane.objects.projects.models import Project


class Membership(RecordedModel):
    """The role of a user in one project."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "mem"), editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    project = models.ForeignKey(Project, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=[(role, role) for role in ROLES])
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["project__slug", "user__username"]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "project"],
                name="access_membership_once_a_project",
                violation_error_message="This user is a member of the project already.",
            )
        ]

    def __str__(self) -> str:
        return f"{self.user} as {self.role} of {self.project}"

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        return {"id": self.pk, "user": self.user.get_username(), "project": self.project_id, "role": self.role}
