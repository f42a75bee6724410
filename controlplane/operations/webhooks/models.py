from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.core.text import PRINTABLE
from controlplane.objects.projects.models import Project, isoformat
from controlplane.operations.webhooks import sealing, services
from controlplane.operations.webhooks.signing import secrets_of
from controlplane.operations.webhooks.targets import MAX_URL_LENGTH, Refused, check_written, networks, read_url

MOST_EMAILS = 20
# The time after a rotation in which messages have a signature of the former secret too.
OVERLAP = timedelta(hours=24)
# If a secret is rotated again within that time, of so many former ones.
MOST_FORMER = 4
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


class Destination(RecordedModel):
    """
    Where messages are sent.

    Attributes:
        project: Whose members see it. None: it is of the installation, and only operators see it.
        service: Of a chat or pager, its name, such as "slack".
        sealed: The encrypted URL of the service, which has secrets.
        generation: The number of the present secret.
        rotated_at: When the former secret was replaced. None: never.
        signs_from: The number of the oldest secret that signs for a time after the rotation. None: the former one.
    """

    WEBHOOK, EMAIL, CHAT = "webhook", "email", "chat"
    KINDS = ((WEBHOOK, "webhook"), (EMAIL, "e-mail"), (CHAT, "chat or pager"))

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "whk"), editable=False)
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="destinations")
    name = models.CharField(max_length=200, validators=[PRINTABLE])
    kind = models.CharField(max_length=10, choices=KINDS, default=WEBHOOK)
    url = models.CharField(
        "URL",
        max_length=MAX_URL_LENGTH,
        blank=True,
        help_text="Of a webhook, such as https://alerts.example/hook. It is shown to members.",
    )
    emails = models.JSONField("e-mail addresses", default=list, blank=True)
    service = models.CharField(max_length=20, blank=True, editable=False)
    sealed = models.TextField(blank=True, editable=False)
    active = models.BooleanField(default=True, help_text="An inactive destination gets nothing.")
    generation = models.PositiveIntegerField(default=1, editable=False)
    rotated_at = models.DateTimeField(null=True, editable=False)
    signs_from = models.PositiveIntegerField(null=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name", "id"]
        verbose_name = "destination"

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Raise ValidationError for an address that nothing is sent to, and for another project."""
        former = Destination.objects.filter(pk=self.pk).values_list("project", flat=True)
        if former and former[0] != self.project_id:
            message = "Must not be changed. Delete the destination and add another."
            raise ValidationError({"project": ValidationError(message, code="immutable")})
        if self.kind == self.WEBHOOK:
            self._check_url()
        elif self.kind == self.EMAIL:
            check_emails(self.emails)
        elif self.kind == self.CHAT and not self.sealed:
            raise ValidationError({"service_url": ValidationError("Must be the URL of a service.", code="required")})
        # Fields that the kind does not have are dropped.
        self.url = self.url if self.kind == self.WEBHOOK else ""
        self.emails = self.emails if self.kind == self.EMAIL else []
        if self.kind != self.CHAT:
            self.service = self.sealed = ""

    def _check_url(self) -> None:
        try:
            check_written(read_url(self.url), networks(settings.ALERT_NETWORKS))
        except Refused as exc:
            raise ValidationError({"url": ValidationError(str(exc), code="url")}) from exc

    def set_service(self, url: str) -> None:
        """
        Set the chat or pager by its URL, which is kept encrypted, without saving.

        Raises:
            ValidationError: There is no such service, or it is not allowed. The message does not have the URL.
        """
        try:
            self.service, self.sealed = services.check(url), sealing.seal(url)
        except Refused as exc:
            raise ValidationError({"service_url": ValidationError(str(exc), code="url")}) from None

    @property
    def address(self) -> str:
        """Where messages are sent, as people may see it."""
        if self.kind == self.EMAIL:
            return ", ".join(self.emails)
        return f"{self.service}://…" if self.kind == self.CHAT else self.url

    def secrets(self, now: datetime) -> list[str]:
        """Return the secrets with which a message is signed now, the present one first."""
        return secrets_of(self.pk, range(self.generation, self.oldest(now) - 1, -1))

    def oldest(self, now: datetime) -> int:
        """Return the number of the oldest secret with which a message is signed now."""
        if self.rotated_at is None or now >= self.rotated_at + OVERLAP:
            return self.generation
        return max(self.signs_from or self.generation - 1, self.generation - MOST_FORMER)

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        fields = {"project": self.project_id, "name": self.name, "kind": self.kind, "address": self.address}
        # The audit keeps a digest of a sealed value, which shows whether it was changed.
        sealed = {"sealed": sha256(self.sealed.encode()).hexdigest()[:16]} if self.sealed else {}
        return {"id": self.pk, **fields, **sealed, "active": self.active, "generation": self.generation}


def check_emails(given: Any) -> None:
    """Raise ValidationError unless these are some e-mail addresses."""
    addresses = given if isinstance(given, list) else [None]
    wrong = [address for address in addresses if not (isinstance(address, str) and _is_email(address))]
    if wrong or not 0 < len(addresses) <= MOST_EMAILS:
        message = f"Must be 1 to {MOST_EMAILS} e-mail addresses such as ops@example.org."
        raise ValidationError({"emails": ValidationError(message, code="emails")})
    if not settings.EMAIL_HOST:
        message = "Must be empty, because no mail server is set. An operator sets SLUICEGATE_EMAIL_URL."
        raise ValidationError({"emails": ValidationError(message, code="no_mail_server")})


def _is_email(text: str) -> bool:
    try:
        validate_email(text)
    except ValidationError:
        return False
    return text.isascii()


class Delivery(RecordedModel):
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
    destination = models.ForeignKey(Destination, models.CASCADE, related_name="deliveries")
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
        verbose_name_plural = "deliveries"
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
        """The result of the last attempt in words, or an empty string."""
        return self.log[-1]["result"] if self.log else ""

    def as_record(self) -> dict[str, Any]:
        ends = {"created_at": isoformat(self.created_at), "delivered_at": isoformat(self.delivered_at)}
        return {"id": self.pk, "webhook": self.destination_id, "message": self.message_id, "state": self.state, **ends}
