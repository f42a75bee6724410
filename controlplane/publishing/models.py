from functools import partial

from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id


class Installation(models.Model):
    """The only row, which names this database. A store keeps the name of the installation that publishes to it."""

    number = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    name = models.CharField(max_length=40, default=partial(new_id, "ins"), editable=False)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def own_id(cls) -> str:
        """Return the name of this installation, which is made when it is first asked for."""
        return cls.objects.get_or_create(number=1)[0].name


class Revision(models.Model):
    """
    A published state. Its number is also the fencing token, so the store refuses an older state.

    Enforcers never obey a lower number of the same epoch. A new epoch begins on purpose, after a restore or a move.
    """

    number = models.BigIntegerField(primary_key=True)
    epoch = models.PositiveIntegerField(default=0)
    at = models.DateTimeField(default=timezone.now)
    by = models.CharField(max_length=200, blank=True)
    channel = models.CharField(max_length=10, blank=True)
    changes = models.JSONField(default=dict)
    published_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ["-number"]

    def __str__(self) -> str:
        return f"revision {self.number}"


class PublishedDocument(models.Model):
    """
    The document of a policy, project or token, or the global one, as a revision has published it.

    There is a row for each time that a document became another one. So the last row up to a revision is the document
    that was in force then.
    """

    id = models.BigAutoField(primary_key=True)
    # As Revision.changes names it, and token:<id> for a token. Not its digest, which nobody may read.
    name = models.CharField(max_length=60)
    revision = models.BigIntegerField()
    # None after a deletion.
    document = models.JSONField(null=True)

    class Meta:
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["name", "revision"], name="publishing_document_once_a_revision")]

    def __str__(self) -> str:
        return f"{self.name} of revision {self.revision}"


class OutboxEntry(models.Model):
    """An object that was changed and must be published. The entry names the object, and not its state."""

    KINDS = tuple((kind, kind) for kind in ("policy", "project", "token", "global", "prices", "all", "epoch", "reset"))

    id = models.BigAutoField(primary_key=True)
    kind = models.CharField(max_length=10, choices=KINDS)
    # The id of a policy or project, the digest of a token, or the JSON of a reset that enforcers read.
    object_id = models.CharField(max_length=1000, blank=True)
    by = models.CharField(max_length=200, blank=True)
    channel = models.CharField(max_length=10, blank=True)
    # The id of the change that made the entry. Empty if the reconciler made it.
    change = models.CharField(max_length=40, blank=True, default="", db_default="", db_index=True)
    created_at = models.DateTimeField(default=timezone.now)
    revision = models.ForeignKey(Revision, models.CASCADE, null=True, related_name="outbox")

    class Meta:
        ordering = ["id"]
        verbose_name_plural = "outbox entries"
        indexes = [models.Index(fields=["id"], condition=models.Q(revision=None), name="publishing_outbox_pending")]

    def __str__(self) -> str:
        return f"{self.kind} {self.object_id}"
