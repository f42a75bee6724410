"""The REST resource of overrides, whose changes may only be tried."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, PermissionDenied, ValidationError

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.partitions import text_of, values_of
from controlplane.objects.overrides.actions import save_override
from controlplane.objects.overrides.creating import Holder, check_overrides, create_overrides
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from controlplane.releases.review.overriding import override_review
from controlplane.releases.review.reviews import Review
from controlplane.web.rest.review import ReviewedTrialSerializer, previewed
from controlplane.web.restkit.batches.jobs import JobBatched, Key
from controlplane.web.restkit.batches.views import batch_of, of_items
from controlplane.web.restkit.fields import MANAGED_BY, LimitReferenceField, ReferenceField
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery
from controlplane.web.restkit.views import Resource
from controlplane.web.restkit.writes.trials import Trial
from enforcement.model.matching import check_partition
from enforcement.model.sizes import MAX_PARTITION_VALUE_LENGTH, MAX_PARTITIONS

OVERRIDE_ID = "ovr_[0-9a-z]{1,36}"
PARTITION = {
    "type": "object",
    "maxProperties": MAX_PARTITIONS,
    "propertyNames": {"pattern": r"^[a-z][a-z0-9._-]{0,63}$"},
    "additionalProperties": {"type": "string", "minLength": 1, "maxLength": MAX_PARTITION_VALUE_LENGTH},
    "examples": [{"label.team": "web"}],
}
# A key that may not change a limit for all projects may not change it for one of them.
SHARED_LIMIT = "This limit belongs to a policy that all projects share, and this key is limited to some."


@extend_schema_field(PARTITION)
class PartitionField(serializers.Field):
    """Values of a partition by name, kept as a text."""

    def to_internal_value(self, data: Any) -> str:
        try:
            return text_of(check_partition(data)) if data != {} else ""
        except ValueError as exc:
            message = f"{str(exc)[0].upper()}{str(exc)[1:]}."
            raise ValidationError([ErrorDetail(message, code="invalid_partition")]) from exc

    def to_representation(self, value: str) -> dict[str, str]:
        return values_of(value)


@example(limit="free/per-minute", project="chat", quota=500, reason="A launch", ends_at="2027-12-31T00:00:00Z")
class OverrideSerializer(CleanModelSerializer[Override]):
    limit = LimitReferenceField(help_text="policy-slug/limit-name")
    token = ReferenceField(
        "tokens", by="id", related=("project",), allow_null=True, default=None, help_text="Id of the token, or null."
    )
    project = ReferenceField("projects", allow_null=True, default=None, help_text="Slug of the project, or null.")
    partition = PartitionField(
        default="", help_text="Values of what the limit is partitioned by. If empty, every value is raised."
    )

    class Meta:
        model = Override
        fields = [
            *("id", "limit", "token", "project", "partition", "quota", "burst", "reason", "ends_at"),
            *("managed_by", "created_by", "created_at"),
        ]
        extra_kwargs = {
            "burst": {"default": None, "min_value": 1},
            "ends_at": {"default": None},
            "managed_by": MANAGED_BY,
        }
        read_only_fields = ["created_by"]

    def validate_limit(self, limit: Limit) -> Limit:
        if not self.context["access"].owns(limit.policy.project_id):
            raise ValidationError([ErrorDetail(SHARED_LIMIT, code="key_limited_to_projects")])
        return limit


class OverrideQuery(ListQuery):
    limit = LimitReferenceField(required=False, help_text="policy-slug/limit-name")
    token = ReferenceField("tokens", by="id", required=False, help_text="Id of the token.")
    project = ReferenceField("projects", required=False, help_text="Slug of the project that has the override.")
    token_project = ReferenceField("projects", required=False, help_text="Slug of the project whose token has it.")


class OverrideItemSerializer(OverrideSerializer):
    """The serializer of an item of a batch. Its rules are checked when it is saved, as earlier items count for them."""

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        return attrs


@batch_of(OverrideItemSerializer, OverrideSerializer)
class OverrideView(JobBatched[Override], Resource[Override]):
    """Another quota for one limit of one token or project, with a reason and an optional end."""

    serializer_class = OverrideSerializer
    # The result of the dry run of a change, and the override before it.
    found: Review | None = None
    former: Override | None = None
    lookup_field = "id"
    lookup_value_regex = OVERRIDE_ID
    identity = ("limit", "token", "project", "partition")
    grouped_by = ("token", "project")
    ordering = ("-id",)
    queries = {"list": OverrideQuery}
    trials = dict.fromkeys(("create", "partial_update", "destroy"), ReviewedTrialSerializer)
    scopes = {
        "list": "policies:read",
        "retrieve": "policies:read",
        "create": "overrides:write",
        "batch": "overrides:write",
        "partial_update": "overrides:write",
        "destroy": "overrides:write",
    }

    def get_queryset(self) -> QuerySet[Override]:
        columns = {"limit": "limit", "token": "token", "project": "project", "token_project": "token__project"}
        chosen = {column: self.query[name] for name, column in columns.items() if name in self.query}
        rows = self.access.overrides().select_related("limit__policy", "token__project", "project")
        return rows.filter(**chosen)

    def check_writable(self, obj: Override) -> None:
        if not self.access.owns(obj.limit.policy.project_id):
            raise PermissionDenied(SHARED_LIMIT)

    def for_writing(self) -> Override:
        self.former = former = super().for_writing()
        if self.action == "destroy" and self.query["dry_run"]:
            self.found = override_review(former, None, timezone.now())
        return former

    def as_written(self, obj: Override) -> Override:
        written = super().as_written(obj)
        if self.query["dry_run"]:
            self.found = override_review(self.former, written, timezone.now())
        return written

    def review(self, tried: Trial) -> dict[str, Any]:
        return previewed(self.found, self.access) if self.found else {}

    def save_new(self, tx: OpenChange, serializer: Any) -> Override:
        override = Override(**serializer.validated_data)
        save_override(tx, override)
        return override

    @classmethod
    def create_items(cls, tx: OpenChange, items: Sequence[dict[str, Any]]) -> list[Override]:
        """Save the overrides with few statements."""
        overrides = [Override(**item) for item in items]
        with of_items():
            create_overrides(tx, overrides)
        return overrides

    @classmethod
    def check_items(cls, items: Sequence[dict[str, Any]], others: Mapping[Key, int]) -> None:
        overrides = [Override(**item) for item in items]
        more: Counter[Holder] = Counter()
        for override in overrides:
            named = override.token_id, override.project.slug if override.project else None
            more[override.token_id, override.project_id] = others[named]
        with of_items():
            check_overrides(overrides, more)

    def save_changed(self, tx: OpenChange, serializer: Any, before: dict[str, Any]) -> None:
        override = serializer.candidate(serializer.validated_data)
        if override.as_record() != before:
            save_override(tx, override)
