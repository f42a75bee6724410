from collections.abc import Collection
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from controlplane.core.ids import new_id
from controlplane.core.records import RecordedModel
from controlplane.core.text import PRINTABLE
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, isoformat
from controlplane.operations.alerts.rule_kinds import KINDS, LONGEST, Kind, usual_thresholds
from controlplane.operations.webhooks.models import Destination
from enforcement.model.sizes import MAX_NUMBER

EVERY_LIMIT = "*"
MOST_THRESHOLDS = 10
RAISED, RESOLVED = "raised", "resolved"


class AlertRule(RecordedModel):
    """
    A condition that is watched, and the webhooks and people that are notified.

    Attributes:
        project: Whose tokens and limits are watched. None: those of all projects, or the installation.
        limit: "policy-slug/limit-name", or "*" for each of them.
        within_seconds: How far a rule looks ahead or back, if its kind does.
        amount: Of money, in millionths, of which a share is spent.
        cool_down_seconds: Time after an event without another one of the same rule and subject, unless that is
            of a higher threshold.
        evaluated_at: When those states were looked at from which the last events were decided.
    """

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "alr"), editable=False)
    name = models.CharField(max_length=200, validators=[PRINTABLE])
    project = models.ForeignKey(
        Project,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="alert_rules",
        help_text="If empty, all projects are watched, or the installation.",
    )
    kind = models.CharField("alert if", max_length=20, choices=[(name, kind.words) for name, kind in KINDS.items()])
    limit = models.CharField(
        max_length=128,
        default=EVERY_LIMIT,
        validators=[PRINTABLE],
        help_text="For a share of a limit: policy-slug/limit-name, or * for each limit.",
    )
    thresholds = models.JSONField(default=usual_thresholds, blank=True)
    within_seconds = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(60), MaxValueValidator(LONGEST)]
    )
    amount = models.BigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(MAX_NUMBER)]
    )
    cool_down_seconds = models.PositiveIntegerField(default=3_600, validators=[MaxValueValidator(LONGEST)])
    recovery = models.BooleanField(
        "say when it is over", default=True, help_text="A token that has ended is not told of."
    )
    active = models.BooleanField(default=True, help_text="An inactive rule has no new events.")
    destinations = models.ManyToManyField(
        Destination,
        blank=True,
        related_name="rules",
        help_text="Those of the same project. Without any, events are only listed here.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    evaluated_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["name", "id"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Raise ValidationError for fields that do not fit the kind, and set those that the kind does not have."""
        kind = KINDS.get(self.kind)
        if kind is None:
            return  # the field itself reports the error
        if kind.everywhere and self.project_id:
            message = "Must be empty, because this is about the whole installation."
            raise ValidationError({"project": ValidationError(message, code="rule")})
        if kind.thresholds:
            check_thresholds(self.thresholds)
        if kind.limits:
            self._check_limit()
        if kind.amount and self.amount is None:
            raise ValidationError({"amount": ValidationError("Must be an amount of money above 0.", code="required")})
        if kind.within and (self.within_seconds or 0) > kind.most_within:
            message = f"Must be at most {kind.most_within} seconds for this kind, got {self.within_seconds}."
            raise ValidationError({"within_seconds": ValidationError(message, code="range")})
        self._drop_foreign(kind)

    def _drop_foreign(self, kind: Kind) -> None:
        """Set the fields that the kind does not have to what they are without a value."""
        self.thresholds = self.thresholds if kind.thresholds else []
        self.limit = self.limit if kind.limits else EVERY_LIMIT
        self.amount = self.amount if kind.amount else None
        self.within_seconds = (self.within_seconds or kind.within) if kind.within else None

    def _check_limit(self) -> None:
        """Raise ValidationError for a limit that does not exist, or that is one of another project's policy."""
        if self.limit == EVERY_LIMIT:
            return
        policy, _, name = self.limit.partition("/")
        found = Limit.objects.filter(policy__slug=policy, name=name)
        if self.project_id:
            found = found.filter(models.Q(policy__project=None) | models.Q(policy__project=self.project_id))
        if not found.exists():
            message = f"Must be policy-slug/limit-name of a limit that exists, or *, got {self.limit!r}."
            raise ValidationError({"limit": ValidationError(message, code="does_not_exist")})

    def check_destinations(self, destinations: Collection[Destination]) -> None:
        """Raise ValidationError if one of the destinations is of another project, which would read these events."""
        foreign = [destination for destination in destinations if destination.project_id != self.project_id]
        if foreign:
            whose = "of the same project" if self.project_id else "of no project, as this rule is"
            message = f"Must be {whose}, but {foreign[0]} is not."
            raise ValidationError({"destinations": ValidationError(message, code="foreign")})

    def as_record(self) -> dict[str, Any]:
        """Return the fields of this row that an audit entry keeps, as a new dictionary."""
        fields = {"name": self.name, "project": self.project_id, "kind": self.kind, "limit": self.limit}
        numbers = {"thresholds": self.thresholds, "within_seconds": self.within_seconds, "amount": self.amount}
        more = {"cool_down_seconds": self.cool_down_seconds, "recovery": self.recovery, "active": self.active}
        destinations = sorted(self.destinations.values_list("pk", flat=True))
        return {"id": self.pk, **fields, **numbers, **more, "destinations": destinations}


def check_thresholds(given: Any) -> None:
    """Raise ValidationError unless these are some numbers of per cent, each above the one before it."""
    numbers = given if isinstance(given, list) else [None]
    fits = all(type(number) is int and 1 <= number <= 100 for number in numbers)
    if not (fits and 0 < len(numbers) <= MOST_THRESHOLDS and sorted(set(numbers)) == numbers):
        message = f"Must be 1 to {MOST_THRESHOLDS} rising integers from 1 to 100, such as 50, 80, 100."
        raise ValidationError({"thresholds": ValidationError(message, code="range")})


class AlertEvent(models.Model):
    """
    A finding of a rule about one subject in one period, or the end of it.

    Attributes:
        subject: What it is about, such as a token with a limit, as a key.
        period: The window of the limit or another span in which there is one such event, as a key.
        level: The threshold that was reached. 1 for kinds without any.
        over: The title of the event that says that it is over.
        ends_at: When the period ends. None: nobody knows.
        resolved_at: Of a raised one, when it was over. None: it is open.
    """

    STATES = tuple((state, state) for state in (RAISED, RESOLVED))

    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "evt"), editable=False)
    rule = models.ForeignKey(AlertRule, models.CASCADE, related_name="events")
    project = models.ForeignKey(Project, models.CASCADE, null=True, related_name="+")
    kind = models.CharField(max_length=20)
    state = models.CharField(max_length=10, choices=STATES, default=RAISED)
    subject = models.CharField(max_length=300)
    period = models.CharField(max_length=64)
    level = models.PositiveIntegerField(default=1)
    title = models.CharField(max_length=500)
    over = models.CharField(max_length=500, blank=True)
    data = models.JSONField(default=dict)
    at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True)
    resolved_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["rule", "subject", "period", "level", "state"], name="alerts_event_once_a_period"
            )
        ]
        indexes = [
            models.Index(fields=["-at", "-id"], name="alerts_event_latest"),
            models.Index(fields=["rule"], condition=models.Q(state=RAISED, resolved_at=None), name="alerts_event_open"),
        ]

    def __str__(self) -> str:
        return self.title


class Steadiness(models.Model):
    """
    The only row. Whether looks find the store reachable.

    Attributes:
        steady_since: Since when each look has found it, without a gap between two of them.
        away_since: Since when none has found it. None: the last one has.
        was_away_since, was_away_until: The last time without it that is over.
    """

    number = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    looked_at = models.DateTimeField()
    steady_since = models.DateTimeField(null=True)
    away_since = models.DateTimeField(null=True)
    was_away_since = models.DateTimeField(null=True)
    was_away_until = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"steady since {self.steady_since}"


class Acknowledgement(RecordedModel):
    """
    That somebody takes care of what needs a hand, or wants to hear nothing of it for some time.

    Attributes:
        subject: The key of the condition.
        fault: What was the matter, in words.
        level, weight: How bad it was. What is worse is shown again.
        until: When it is shown again. None: not before it is over.
    """

    ACKNOWLEDGED, MUTED = "acknowledged", "muted"
    STATES = tuple((state, state) for state in (ACKNOWLEDGED, MUTED))

    subject = models.CharField(primary_key=True, max_length=400)
    state = models.CharField(max_length=12, choices=STATES)
    fault = models.CharField(max_length=500)
    level = models.PositiveSmallIntegerField()
    weight = models.PositiveIntegerField()
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="+")
    by = models.CharField(max_length=200, validators=[PRINTABLE])
    at = models.DateTimeField(default=timezone.now)
    until = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.fault[:200]

    def as_record(self) -> dict[str, Any]:
        fields = {"subject": self.subject, "state": self.state, "project": self.project_id, "by": self.by}
        return {**fields, "until": isoformat(self.until)}
