from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from controlplane.core import store
from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.core.text import PRINTABLE, unprintable
from controlplane.objects.projects.models import Project, Token, check_is_future, isoformat
from enforcement.model.matching import is_attribute_name, may_exist
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH
from enforcement.store_calls.emergency import MAX_GLASS_SECONDS

MAX_GLASS = timedelta(seconds=MAX_GLASS_SECONDS)
# By how much the clock of a host may be ahead of the store's, so that its pages still say what enforcers do.
CLOCKS_DIFFER = timedelta(minutes=10)


# A value that is suspended in all projects.
ALL_PROJECTS = Q(token=None, project=None, within=None)


def concerning(projects: models.QuerySet[Project]) -> Q:
    """Return the condition under which a suspension is of these projects or in them."""
    return Q(project__in=projects) | Q(token__project__in=projects) | Q(within__in=projects)


class SuspensionQuerySet[S: "Suspended"](models.QuerySet[S]):
    def concerning(self, project: Project) -> Self:
        """Return a query of what is suspended of this project or in it, without what is in all projects."""
        return self.filter(Q(project=project) | Q(token__project=project) | Q(within=project))

    def in_force(self, now: datetime) -> Self:
        """Return a query of those whose end is not over. Enforcers ignore the others, and a task ends them."""
        return self.exclude(ends_at__lte=now)

    def of_values(self, project: Project) -> Self:
        """Return a query of the values that are suspended in a project, also of those that are in all of them."""
        return self.filter(Q(within=None) | Q(within=project), token=None, project=None)


class Suspended(models.Model):
    """
    The base of a suspension and of one that has ended.

    Attributes:
        within: Of a value, the project in which it is suspended. None: in all projects.
        ends_at: When it ends by itself, in every proxy and without the control plane. None: it has no end.
    """

    token: Token | None
    token_id: str | None
    project: Project | None
    project_id: str | None
    within: Project | None
    within_id: str | None

    name = models.CharField(
        "attribute",
        max_length=MAX_ATTRIBUTE_NAME_LENGTH,
        blank=True,
        help_text="The attribute as proxies name it, such as session, ip, header.x-id or label.team.",
    )
    value = models.CharField(max_length=MAX_ATTRIBUTE_LENGTH, blank=True)
    reason = models.CharField(max_length=500, validators=[PRINTABLE])
    by = models.CharField(max_length=200, editable=False)
    at = models.DateTimeField(default=timezone.now, editable=False)
    ends_at = models.DateTimeField(null=True, blank=True)

    objects = SuspensionQuerySet.as_manager()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        if self.token_id:
            return str(self.token)
        return str(self.project) if self.project_id else f"{self.name} = {self.value}"

    @property
    def owner_id(self) -> str | None:
        """The id of the project that is concerned, or None if all of them are."""
        return self.token.project_id if self.token else self.project_id or self.within_id

    @property
    def kind(self) -> str:
        """``token``, ``project`` or ``value``."""
        return "token" if self.token_id else "project" if self.project_id else "value"

    def is_in_force(self, now: datetime) -> bool:
        return self.ends_at is None or now < self.ends_at

    @property
    def in_force_now(self) -> bool:
        """Whether every proxy refuses it, for templates."""
        return self.is_in_force(timezone.now())


class Suspension(Suspended, RecordedModel):
    """A token, a project, or a value of an attribute, that every proxy refuses for now."""

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "sus"), editable=False)
    token = models.OneToOneField(Token, models.CASCADE, null=True, editable=False, related_name="suspension")
    project = models.OneToOneField(Project, models.CASCADE, null=True, editable=False, related_name="suspension")
    within = models.ForeignKey(
        Project,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="suspended_values",
        verbose_name="project",
        help_text="If empty, the value is refused in all projects.",
    )

    class Meta:
        ordering = ["-at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["within", "name", "value"],
                condition=Q(token=None, project=None),
                name="emergency_value_once",
                violation_error_message="This value is suspended already.",
            ),
            # In SQL, no null equals another one.
            models.UniqueConstraint(
                fields=["name", "value"],
                condition=Q(token=None, project=None, within=None),
                name="emergency_value_once_everywhere",
                violation_error_message="This value is suspended already.",
            ),
        ]

    def clean(self) -> None:
        """Raise ValidationError for an end that is over, or for an attribute that no request can have."""
        check_is_future("ends_at", self.ends_at)
        if self.token_id or self.project_id:
            return
        if not (is_attribute_name(self.name) and may_exist(self.name)):
            message = f"Must be the name of an attribute, such as session or header.x-session, got {self.name!r}."
            raise ValidationError({"name": ValidationError(message, code="rule")})
        if found := unprintable(self.value):
            message = f"Must have printable characters only, but contains {found}."
            raise ValidationError({"value": ValidationError(message, code="unprintable")})
        if not self.value:
            raise ValidationError({"value": "Must not be empty."})

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        subject = {"token": self.token_id, "project": self.project_id}
        value = {"within": self.within_id, "name": self.name, "value": self.value}
        end = {"ends_at": isoformat(self.ends_at)}
        known = {name: it for name, it in {**subject, **value, **end}.items() if it}
        return {"id": self.pk, **known, "reason": self.reason}

    def touches(self) -> Iterator[tuple[str, str]]:
        """Yield the outbox entries that a change of this row needs."""
        if self.token:
            yield from self.token.touches()
            return
        if self.project:
            yield from self.project.touches()
        yield "emergency", ""


def suspension_of(subject: Token | Project) -> Suspension | None:
    """Return the suspension of a token or project, whose end may be over for some seconds, or None."""
    return getattr(subject, "suspension", None)


def is_suspended(subject: Token | Project, now: datetime) -> bool:
    """Return whether every proxy refuses a token or project for now. It does not look at the project of a token."""
    suspension = suspension_of(subject)
    return suspension is not None and suspension.is_in_force(now)


def suspended(now: datetime) -> Q:
    """Return the condition under which tokens or projects are suspended."""
    return Q(suspension__isnull=False) & (Q(suspension__ends_at=None) | Q(suspension__ends_at__gt=now))


class EndedSuspension(Suspended):
    """A suspension that is over, which is kept as history. It has the id that it had."""

    id = models.CharField(primary_key=True, max_length=40, editable=False)
    token = models.ForeignKey(Token, models.CASCADE, null=True, related_name="ended_suspensions")
    project = models.ForeignKey(Project, models.CASCADE, null=True, related_name="ended_suspensions")
    within = models.ForeignKey(Project, models.CASCADE, null=True, related_name="ended_values")
    ended_at = models.DateTimeField()
    ended_by = models.CharField(max_length=200)

    class Meta:
        ordering = ["-ended_at", "-id"]

    @classmethod
    def of(cls, suspension: Suspension, ended_at: datetime, ended_by: str) -> "EndedSuspension":
        """Return a new row for a suspension that ends now, or that ended at its end."""
        columns = {field.attname: getattr(suspension, field.attname) for field in suspension._meta.concrete_fields}
        return cls(**columns, ended_at=ended_at, ended_by=ended_by)


class BreakGlass(RecordedModel):
    """
    A time in which every limit is a shadow, in the whole fleet.

    Enforcers end it at ``ends_at`` by themselves. ``ended_at`` says when the control plane has taken back the document.
    """

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "glass"), editable=False)
    began_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    reason = models.CharField(max_length=500, validators=[PRINTABLE])
    by = models.CharField(max_length=200)
    ended_by = models.CharField(max_length=200, blank=True)

    # Whether no enforcer can know of it yet. Pages that say so set it.
    is_pending = False

    class Meta:
        ordering = ["-began_at"]
        verbose_name_plural = "break glass"

    def __str__(self) -> str:
        return f"break glass until {self.ends_at:%Y-%m-%d %H:%M} UTC"

    def clean(self) -> None:
        """Raise ValidationError for an end that is over, or too late for something that must end by itself."""
        if not self.began_at < self.ends_at <= self.began_at + MAX_GLASS:
            rule = f"Must be in the future, and at most {MAX_GLASS_SECONDS // 3600} hours from now"
            message = f"{rule}, got {self.ends_at.isoformat()}."
            raise ValidationError({"ends_at": ValidationError(message, code="range")})

    @classmethod
    def present(cls) -> "BreakGlass | None":
        """Return the row that is published, or None. Its end may be over for some seconds."""
        return cls.objects.filter(ended_at=None).first()

    @classmethod
    def in_force(cls, now: datetime) -> "BreakGlass | None":
        """
        Return the glass because of which every limit is a shadow now, or None.

        Enforcers end it by the clock of the store. If this host's clock is some minutes ahead, nobody may learn from it
        that limits are enforced again while they are not. So the store is asked in the minutes after the end.
        """
        glass = cls.present()
        if glass is None or now < glass.ends_at:
            return glass
        present = store.now() if now - glass.ends_at < CLOCKS_DIFFER else None
        return glass if present and present < glass.ends_at else None

    def as_record(self) -> dict[str, Any]:
        ends = {"ends_at": isoformat(self.ends_at), "ended_at": isoformat(self.ended_at)}
        return {"id": self.pk, "began_at": isoformat(self.began_at), **ends}

    def touches(self) -> Iterator[tuple[str, str]]:
        yield "emergency", ""
