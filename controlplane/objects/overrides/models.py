"""Overrides, which replace numbers of one limit for one token or project."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from controlplane.core.from_files import Managed
from controlplane.core.ids import new_id
from controlplane.core.money import permits
from controlplane.core.partitions import check_values, values_of, with_values
from controlplane.core.text import PRINTABLE
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, Token, check_is_future, isoformat
from enforcement.model.limits import InvalidLimit

# For one token or project. With 250 bytes for each, all of them fit into its document.
MAX_OVERRIDES = 200


class LiveOverrides(models.Manager["Override"]):
    """The overrides that have not ended. Those that have are kept as history, and count nowhere."""

    def get_queryset(self) -> models.QuerySet["Override"]:
        return super().get_queryset().filter(ended_at=None)


class Override(Managed):
    id = models.CharField(primary_key=True, max_length=40, default=partial(new_id, "ovr"), editable=False)
    limit = models.ForeignKey(Limit, models.CASCADE, related_name="overrides")
    token = models.ForeignKey(Token, models.CASCADE, null=True, blank=True, related_name="overrides")
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="overrides")
    # Values of what the limit is partitioned by, one on each line, such as "label.team = web". If empty, every value.
    partition = models.CharField(max_length=600, blank=True, default="", db_default="", validators=[check_values])
    quota = models.BigIntegerField(validators=[MinValueValidator(0)])
    burst = models.BigIntegerField(null=True, blank=True)
    reason = models.CharField(max_length=500, validators=[PRINTABLE])
    ends_at = models.DateTimeField(null=True, blank=True)
    created_by = models.CharField(max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # When it ended, by its end or by hand. None while it is in force.
    ended_at = models.DateTimeField(null=True, editable=False)

    objects = LiveOverrides()
    with_ended = models.Manager()

    ONE_HOLDER = "Choose a token or a project, one of the two."

    class Meta:
        # The app in which its table began.
        app_label = "policies"
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(token=None, project__isnull=False) | models.Q(token__isnull=False, project=None),
                name="policies_override_of_a_token_or_a_project",
                violation_error_message="Choose a token or a project, one of the two.",
            ),
            *(
                models.UniqueConstraint(
                    fields=["limit", holder, "partition"],
                    condition=models.Q(ended_at=None),
                    name=f"policies_override_once_a_{holder}",
                    violation_error_message=f"This {holder} has an override of this limit and value already.",
                )
                for holder in ("token", "project")
            ),
        ]
        indexes = [
            models.Index(fields=["ends_at"], condition=models.Q(ended_at=None), name="policies_override_ends"),
        ]
        permissions = [("add_endless_override", "Can give an override no end")]

    def __str__(self) -> str:
        return f"{self.limit} for {self.token or self.project}{with_values(self.partition)}"

    @property
    def values(self) -> dict[str, str]:
        """The values of the partition by name. Empty for all."""
        return values_of(self.partition)

    def clean(self) -> None:
        self.check_alone()
        if not Limit.objects.filter(pk=self.limit_id).exists() or self.quota is None:
            return  # the field itself reports the error
        policy, project = self.limit.policy_id, self.project_id
        applies = self.applies_at_once or bool(
            project and Token.objects.filter(project=project, policy=policy).exists()
        )
        others = Override.objects.filter(token=self.token_id, project=project).exclude(pk=self.pk)
        present = others.filter(limit=self.limit_id, partition=self.partition).first()
        self.check_among(present, others.count(), applies=applies)

    def check_alone(self) -> None:
        """Raise ValidationError for what no other row decides."""
        if (self.token_id is None) == (self.project_id is None):
            # At the field that is missing, or that is too many. The constraint, which names none, is then not checked.
            field = "token" if self.token_id is None else "project"
            raise ValidationError({field: ValidationError(self.ONE_HOLDER, code="one_of_two")})
        check_is_future("ends_at", self.ends_at)

    @property
    def owner(self) -> Project:
        """The project of the holder. Raises ValidationError if there is no holder."""
        if project := self.token.project if self.token else self.project:
            return project
        raise ValidationError(self.ONE_HOLDER)

    @property
    def applies_at_once(self) -> bool:
        """Whether the limit applies to the holder. That of a project may also apply by the policies of its tokens."""
        policy, project = self.limit.policy, self.owner
        own = self.token.policy_id if self.token else project.anonymous_policy_id
        return policy.is_global or policy.pk in (own, project.policy_id)

    def check_among(self, present: "Override | None", others: int, *, applies: bool) -> None:
        """
        Raise ValidationError if the override would do nothing, is there already, or would not fit.

        Args:
            present: The override of the same limit, holder and values.
            others: The number of the other overrides of the holder.
            applies: Whether the limit applies to the holder.
        """
        self._check_limit(applies)
        if odd := sorted(self.values.keys() - set(self.limit.partition_by)):
            known = ", ".join(self.limit.partition_by) or "nothing"
            message = f"Must name only what {self.limit} is partitioned by ({known}), got {odd[0]}."
            raise ValidationError({"partition": ValidationError(message, code="no_partition")})
        if present:
            quota = permits(present.quota, self.limit.unit)
            message = f"{present} already exists, with the quota {quota} and the id {present.pk}. Change that."
            raise ValidationError({"limit": ValidationError(message, code="unique")})
        if others >= MAX_OVERRIDES:
            raise ValidationError(f"A token or project must have at most {MAX_OVERRIDES} overrides.")
        try:
            self.limit.as_value(**self.changes())
        except InvalidLimit as exc:
            raise ValidationError({exc.field if exc.field in ("quota", "burst") else "limit": exc.reason}) from exc

    def _check_limit(self, applies: bool) -> None:
        policy, project = self.limit.policy, self.owner
        if policy.project_id not in (None, project.pk):
            raise ValidationError({"limit": "Must not be a limit of another project's policy."})
        if not applies:
            policies = "the policy of its project" if self.token_id else "a policy of its tokens"
            message = (
                f"Must apply to {self.token or project}. Neither its policy nor {policies} nor the global policy is "
                f"{policy}."
            )
            raise ValidationError({"limit": ValidationError(message, code="does_not_apply")})

    def changes(self) -> dict[str, int]:
        """Return a dictionary of the fields of the limit that this override replaces, with their new values."""
        return {"quota": self.quota} if self.burst is None else {"quota": self.quota, "burst": self.burst}

    def copy_to(self, token: Token) -> "Override":
        """Save and return a copy of this override for *token*."""
        names = ("limit", "partition", "quota", "burst", "reason", "ends_at", "created_by")
        return Override.objects.create(token=token, **{name: getattr(self, name) for name in names})

    def as_record(self) -> dict[str, Any]:
        holder = {"token": self.token_id, "project": self.project_id}
        fields = {"limit": str(self.limit), "quota": self.quota, "burst": self.burst, "reason": self.reason}
        more = {"ended_at": isoformat(self.ended_at)} if self.ended_at else {}
        more |= {"managed_by": self.managed_by} if self.managed_by else {}
        more |= {"partition": self.partition} if self.partition else {}
        return {"id": self.pk, **holder, **fields, "ends_at": isoformat(self.ends_at), **more}

    def audited_project(self, before: object, after: object) -> str | None:
        return self.project_id or (self.token.project_id if self.token else None)

    def touches(self) -> Iterator[tuple[str, str]]:
        for holder in (self.token, self.project):
            yield from holder.touches() if holder else ()
