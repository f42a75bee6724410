from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from django.db import models
from django.utils import timezone

from controlplane.changes.change.outbox import OutboxEntry as OutboxEntry
from controlplane.core.ids import new_id

# Outbox entries of one publication.
BATCH = 5000


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

    # If a revision has several changes, the first of these kinds counts. POLICY is also one of projects, FULL one that
    # wrote everything, and OTHER one of prices or resets.
    FULL, POLICY, OVERRIDE, TOKEN, OTHER = "full", "policy", "override", "token", "other"
    KINDS = tuple((kind, kind) for kind in (FULL, POLICY, OVERRIDE, TOKEN, OTHER))

    number = models.BigIntegerField(primary_key=True)
    epoch = models.PositiveIntegerField(default=0, db_default=0)
    at = models.DateTimeField(default=timezone.now)
    by = models.CharField(max_length=200, blank=True)
    channel = models.CharField(max_length=10, blank=True)
    changes = models.JSONField(default=dict)
    published_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=500, blank=True)
    # The kind of change, for the filter of the list. The database has the default too, because an earlier version
    # may still publish during an upgrade.
    kind = models.CharField(max_length=10, choices=KINDS, default=OTHER, db_default=OTHER)
    # How many of the instances that ran then have it, and after how long the last of them had it. None if unknown.
    live_on = models.PositiveIntegerField(null=True)
    instances = models.PositiveIntegerField(null=True)
    lag_ms = models.PositiveBigIntegerField(null=True)
    # Whether these numbers are final, because all instances had it or because it was given up waiting for them.
    is_counted = models.BooleanField(default=False, db_default=False)

    class Meta:
        ordering = ["-number"]
        indexes = [
            models.Index(fields=["kind", "-number"], name="publishing_revision_kind"),
            models.Index(fields=["number"], condition=models.Q(is_counted=False), name="publishing_revision_open"),
        ]

    def __str__(self) -> str:
        return f"revision {self.number}"


class PublishedChange(models.Model):
    """
    A change and the revision that published it, which outlives the entries of the outbox.

    A change that undoes an earlier revision names that as well, and has its row before it is published.
    """

    change = models.CharField(primary_key=True, max_length=40)
    revision = models.ForeignKey(Revision, models.CASCADE, null=True, related_name="published")
    undoes = models.ForeignKey(Revision, models.CASCADE, null=True, related_name="undone_by")

    def __str__(self) -> str:
        return self.change


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


class RepairedKey(models.Model):
    """
    A key of the store that many use, and that a task had to delete.

    Attributes:
        kind: What the key is for, see ``controlplane.releases.publishing.shared_keys``.
        project_id: That of an intake. Empty for a key that all projects share.
        reason: Why it was deleted the last time, as a sentence without a full stop.
        times: How often it was deleted.
    """

    key = models.CharField(primary_key=True, max_length=128)
    kind = models.CharField(max_length=20)
    project_id = models.CharField(max_length=40, blank=True)
    reason = models.CharField(max_length=200)
    times = models.BigIntegerField(default=0)
    last_at = models.DateTimeField()

    class Meta:
        ordering = ["key"]

    def __str__(self) -> str:
        return self.key


@dataclass(slots=True)
class Work:
    """The outbox entries of one publication, and the objects that they name."""

    entries: list[OutboxEntry]
    wanted: set[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = {(entry.kind, entry.object_id) for entry in self.entries}

    @classmethod
    def pending(cls, among: Iterable[str] = OutboxEntry.NAMES) -> "Work":
        """Return a new Work with the oldest outbox entries of these kinds that are not published yet, at most BATCH."""
        entries = OutboxEntry.objects.filter(revision=None)
        if among is not OutboxEntry.NAMES:
            entries = entries.filter(kind__in=among)
        return cls(list(entries.order_by("pk")[:BATCH]))

    @classmethod
    def is_pending(cls) -> bool:
        """Return whether an outbox entry is not published yet."""
        return OutboxEntry.objects.filter(revision=None).exists()

    def ids(self, kind: str) -> list[str]:
        """Return the object ids of the entries of this kind."""
        return [object_id for wanted, object_id in self.wanted if wanted == kind]

    @property
    def changes(self) -> list[str]:
        """The ids of the changes that the entries belong to."""
        return list(dict.fromkeys(entry.change for entry in self.entries if entry.change))

    @property
    def by(self) -> str:
        return ", ".join(dict.fromkeys(entry.by for entry in self.entries if entry.by))[:200]

    @property
    def channel(self) -> str:
        return self.entries[-1].channel if self.entries else ""
