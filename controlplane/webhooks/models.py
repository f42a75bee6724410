from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.text import PRINTABLE
from controlplane.projects.models import Project, isoformat
from controlplane.webhooks.signing import secrets_of
from controlplane.webhooks.targets import MAX_URL_LENGTH, Refused, read_url

# For so long after a rotation, messages have a signature of the former secret too.
OVERLAP = timedelta(hours=24)
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


class Destination(models.Model):
    """
    Where messages are sent.

    Attributes:
        project: Whose members see it. None: it is of the installation, and only operators see it.
        generation: The number of the present secret.
        rotated_at: When the former secret was replaced. None: never.
    """

    WEBHOOK = "webhook"
    KINDS = ((WEBHOOK, "webhook"),)

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "whk"), editable=False)
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="destinations")
    name = models.CharField(max_length=200, validators=[PRINTABLE])
    kind = models.CharField(max_length=10, choices=KINDS, default=WEBHOOK)
    url = models.CharField(
        "URL",
        max_length=MAX_URL_LENGTH,
        help_text="Such as https://alerts.example/hook. Whoever may see this webhook sees it.",
    )
    active = models.BooleanField(default=True, help_text="Nothing is sent to an inactive webhook, and no new message.")
    generation = models.PositiveIntegerField(default=1, editable=False)
    rotated_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name", "id"]
        verbose_name = "webhook"

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Raise ValidationError for a URL that nothing is sent to, and for another project."""
        former = Destination.objects.filter(pk=self.pk).values_list("project", flat=True)
        if former and former[0] != self.project_id:
            message = "Must not be changed. Delete the webhook and add another."
            raise ValidationError({"project": ValidationError(message, code="immutable")})
        try:
            read_url(self.url)
        except Refused as exc:
            raise ValidationError({"url": ValidationError(str(exc), code="url")}) from exc

    def secrets(self, now: datetime) -> list[str]:
        """Return the secrets with which a message is signed now, the present one first."""
        former = self.rotated_at is not None and now < self.rotated_at + OVERLAP
        return secrets_of(self.pk, [self.generation, *([self.generation - 1] if former else [])])

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        fields = {"project": self.project_id, "name": self.name, "kind": self.kind, "url": self.url}
        return {"id": self.pk, **fields, "active": self.active, "generation": self.generation}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield nothing, because enforcers send no messages."""
        yield from ()

    dependents = touches


class Delivery(models.Model):
    """
    A message to one destination, which is sent until it arrives or is given up.

    The message keeps its id and its body however often it is sent, so a receiver knows a repetition.

    Attributes:
        message_id: What a receiver gets as ``webhook-id``.
        next_at: When it is due. A worker that sends it has moved this behind the time that sending may take.
        log: One {at, ok, result, ms} for each of the last attempts, the last one at the end.
    """

    STATES = tuple((state, state) for state in (PENDING, DELIVERED, FAILED))

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "dlv"), editable=False)
    destination = models.ForeignKey(Destination, models.CASCADE, related_name="deliveries", verbose_name="webhook")
    message_id = models.CharField(max_length=40)
    kind = models.CharField(max_length=60)
    body = models.TextField()
    state = models.CharField(max_length=10, choices=STATES, default=PENDING)
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField(default=timezone.now)
    log = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["destination", "message_id"], name="webhooks_message_once_a_destination")
        ]
        indexes = [
            models.Index(fields=["next_at"], condition=models.Q(state=PENDING), name="webhooks_delivery_due"),
            models.Index(fields=["-created_at", "-id"], name="webhooks_delivery_latest"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} to {self.destination}"

    @property
    def project_id(self) -> str | None:
        """The id of the project whose members may read the audit of this row."""
        return self.destination.project_id

    @property
    def result(self) -> str:
        """What the last attempt brought, in words, or an empty string."""
        return self.log[-1]["result"] if self.log else ""

    def as_record(self) -> dict[str, Any]:
        ends = {"created_at": isoformat(self.created_at), "delivered_at": isoformat(self.delivered_at)}
        return {"id": self.pk, "webhook": self.destination_id, "message": self.message_id, "state": self.state, **ends}

    def touches(self) -> Iterator[tuple[str, str]]:
        yield from ()

    dependents = touches
