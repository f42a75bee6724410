"""The REST resources of policies with their limits, the global policy, and the audit."""

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.api.fields import MANAGED_BY, InstantField, ReferenceField
from controlplane.api.limit_schema import LIMIT, METERING, REFERENCE
from controlplane.api.schema import example
from controlplane.api.serializers import (
    CleanModelSerializer,
    ListQuery,
    OwnProject,
    StrictSerializer,
    unknown_field,
)
from controlplane.api.views import ApiView, Created, Deleted, Listed, Retrieved, check_precondition
from controlplane.core.text import slug_error
from controlplane.policies.actions import lock_global_policy, replace_limits, set_global_policy
from controlplane.policies.models import AuditEntry, Limit, Policy
from controlplane.projects.models import SLUG_PATTERN, Project
from controlplane.publishing.changes import Change
from controlplane.review.api import ChoiceTried, DryRunQuery, ReplacedOrTried, ReviewSerializer, review_of_choice
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import InvalidMetering, Metering
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY

# Fields of a limit that may be null, which is the same as leaving them out.
NULLABLE = ("window_seconds", "calendar", "anchor", "burst", "rollover")


PER_MINUTE = {"name": "per-minute", "algorithm": "sliding_window", "quota": 100, "window_seconds": 60}


@extend_schema_field(REFERENCE)
class LimitField(serializers.Field):
    """A limit, read and checked by its value type in the library."""

    def to_internal_value(self, data: Any) -> LimitValue:
        if not isinstance(data, Mapping):
            raise ValidationError([ErrorDetail("Must be an object.", code="invalid")])
        unknown = sorted(data.keys() - LimitValue.FIELDS)
        if unknown:
            raise ValidationError({name: unknown_field(name, sorted(LimitValue.FIELDS)) for name in unknown})
        given = {name: value for name, value in data.items() if value is not None or name not in NULLABLE}
        if isinstance(given.get("anchor"), str) and given.get("calendar") in ("week", "month"):
            raise ValidationError({"anchor": [ErrorDetail("Must be an integer.", code="invalid_limit")]})
        try:
            return LimitValue.from_json({"algorithm": "fixed_window", **given})
        except InvalidLimit as exc:
            raise ValidationError(_at(exc.field.split("."), exc)) from exc

    def to_representation(self, value: Limit) -> dict[str, Any]:
        """Return every field of the limit as a new dictionary, those with a default too."""
        limit = value.as_value()
        rules = {"methods": [], "path": "", "attributes": {}, **limit.match.to_json()}
        unpriced = limit.unpriced if isinstance(limit.unpriced, str) else dict(limit.unpriced)
        values = {
            "match": rules,
            "partition_by": list(limit.partition_by),
            "charge_on": list(limit.charge_on),
            "weights": dict(limit.weights),
            "unpriced": unpriced,
        }
        return {name: values.get(name, getattr(limit, name)) for name in LIMIT["properties"]}


def _at(path: list[str], exc: InvalidLimit) -> dict[str, Any]:
    errors: Any = [ErrorDetail(exc.reason, code="required" if exc.reason == "Is required." else "invalid_limit")]
    for name in reversed(path):
        errors = {name: errors}
    return errors


class LimitsField(serializers.ListField):
    child = LimitField()

    def to_representation(self, data: Any) -> list[dict[str, Any]]:
        return [self.child.to_representation(limit) for limit in data.all()]


@extend_schema_field(METERING)
class MeteringField(serializers.Field):
    """How requests under a policy are metered, read and checked by its value type in the library."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        try:
            return Metering.from_json(data).to_json()
        except InvalidMetering as exc:
            if exc.field == "metering":
                raise ValidationError([ErrorDetail(exc.reason, code="invalid")]) from exc
            raise ValidationError({exc.field: [ErrorDetail(exc.reason, code="invalid_metering")]}) from exc

    def get_attribute(self, instance: Policy) -> Metering:
        return instance.rules

    def to_representation(self, rules: Metering) -> dict[str, Any]:
        """Return every rule as a new dictionary, those with a default too."""
        parts = {"part_tokens": dict(rules.part_tokens)}
        return {name: parts.get(name, getattr(rules, name)) for name in METERING["properties"]}


@example(slug="free", name="Free", limits=[PER_MINUTE])
class PolicySerializer(OwnProject, CleanModelSerializer):
    project = ReferenceField(
        "projects",
        allow_null=True,
        default=None,
        help_text="Slug of the owning project. If null, all projects share it.",
    )
    limits = LimitsField(
        max_length=MAX_LIMITS_PER_POLICY,
        help_text="All limits, in order. A limit that keeps its name keeps its usage.",
    )

    metering = MeteringField(default=dict)

    class Meta:
        model = Policy
        fields = [
            *("id", "slug", "name", "description", "project", "is_global"),
            *("managed_by", "version", "created_at", "updated_at", "limits", "metering"),
        ]
        extra_kwargs = {"description": {"default": ""}, "managed_by": MANAGED_BY}
        read_only_fields = ["is_global", "version"]

    def candidate(self, attrs: dict[str, Any]) -> Policy:
        return super().candidate({name: value for name, value in attrs.items() if name != "limits"})

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        access, slug = self.context["access"], attrs.get("slug")
        if slug and not access.all_projects and not (self.instance and self.instance.slug == slug):
            project = self.instance.project if self.instance else attrs["project"]
            self._check_slug(slug, project)
        return super().validate(attrs)

    @staticmethod
    def _check_slug(slug: str, project: Project) -> None:
        """Raise ValidationError unless the slug lies in the part of all slugs that belongs to the project."""
        if error := slug_error(slug, project.slug):
            message = f"{error}, because this key is limited to projects."
            raise ValidationError({"slug": [ErrorDetail(message, code="key_limited_to_projects")]})


class PolicyQuery(ListQuery):
    project = serializers.CharField(
        required=False, allow_blank=True, help_text="Slug of the owning project. If empty, the shared policies."
    )


POLICY_OR_REVIEW = PolymorphicProxySerializer("PolicyOrReview", [PolicySerializer, ReviewSerializer], None)


class PolicyView(Listed, Created, Retrieved, ReplacedOrTried, Deleted, ApiView):
    """Named lists of limits, attached to tokens or projects, or applied to every request."""

    serializer_class = PolicySerializer
    lookup_field = "slug"
    lookup_value_regex = SLUG_PATTERN
    ordering = ("slug",)
    queries = {"list": PolicyQuery, "update": DryRunQuery, "partial_update": DryRunQuery}
    scopes = {
        "list": "policies:read",
        "retrieve": "policies:read",
        "create": "policies:write",
        "update": "policies:write",
        "partial_update": "policies:write",
        "destroy": "policies:write",
    }

    def get_queryset(self) -> QuerySet[Policy]:
        found = self.access.policies().select_related("project").prefetch_related("limits")
        if "project" in self.query:
            owner = self.query["project"]
            return found.filter(project__slug=owner) if owner else found.filter(project=None)
        return found

    def check_writable(self, obj: Policy) -> None:
        if not self.access.owns(obj.project_id):
            raise PermissionDenied("This policy is shared by all projects, and this key is limited to some.")

    def locked(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        # Without the prefetch, which would still return the old limits after they were replaced.
        return super().locked(rows).prefetch_related(None)

    @extend_schema(responses=POLICY_OR_REVIEW)
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().update(request, *args, **kwargs)

    @extend_schema(responses=POLICY_OR_REVIEW)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().partial_update(request, *args, **kwargs)

    def save_new(self, tx: Change, serializer: Any) -> Policy:
        values = serializer.validated_data.pop("limits")
        policy = serializer.save()
        replace_limits(tx, policy, values)
        tx.created(policy)
        return policy

    def save_changed(self, tx: Change, serializer: Any, before: dict[str, Any]) -> None:
        values = serializer.validated_data.pop("limits", None)
        limits = before["limits"] if values is None else [value.to_json() for value in values]
        if serializer.candidate(serializer.validated_data).as_record() == before and limits == before["limits"]:
            return
        policy = serializer.save()
        if limits != before["limits"]:
            replace_limits(tx, policy, values)
        tx.updated(policy, before)


class GlobalSerializer(StrictSerializer):
    policy = ReferenceField("policies", allow_null=True, help_text="Slug of the policy that applies to every request.")


GLOBAL_OR_REVIEW = PolymorphicProxySerializer("GlobalOrReview", [GlobalSerializer, ReviewSerializer], None)


class GlobalView(ApiView):
    """The policy that applies to every request of every project."""

    serializer_class = GlobalSerializer
    queries = {"update": DryRunQuery}
    scopes = {"retrieve": "policies:read", "update": "policies:write"}
    of_all_projects = ("update",)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.present()

    @extend_schema(responses=GLOBAL_OR_REVIEW)
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        try:
            with self.change() as tx:
                lock_global_policy()
                present = GlobalPolicy()
                check_precondition(request, present)
                chosen = self.read_body().validated_data["policy"]
                set_global_policy(tx, chosen)
                if self.query["dry_run"] == "true":
                    raise ChoiceTried
                return self.present()
        except ChoiceTried:
            return Response(review_of_choice(chosen, present.policy))

    def present(self) -> Response:
        return self.answer(GlobalPolicy())


class GlobalPolicy:
    """The choice of the global policy, with the fields that a response and an ETag need."""

    pk = "global"

    def __init__(self) -> None:
        self.policy = Policy.objects.filter(is_global=True).first()

    def as_record(self) -> dict[str, Any]:
        return {"policy": self.policy and self.policy.pk}


@extend_schema_field({"type": ["object", "null"], "additionalProperties": True})
class RecordField(serializers.JSONField):
    """The fields of a row at a time, or null if there was none."""


class AuditSerializer(serializers.ModelSerializer):
    at = InstantField()
    object = serializers.SerializerMethodField()
    before = RecordField(help_text="The object before the change. Null if the change created it.")
    after = RecordField(help_text="The object after the change. Null if the change deleted it.")

    class Meta:
        model = AuditEntry
        fields = ["id", "at", "actor", "channel", "action", "object", "before", "after", "reason", "request_id"]

    @extend_schema_field(
        {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("type", "id", "label")},
            "required": ["type", "id", "label"],
        }
    )
    def get_object(self, entry: AuditEntry) -> dict[str, str]:
        return {"type": entry.object_type, "id": entry.object_id, "label": entry.object_label}


class AuditQuery(ListQuery):
    actor = serializers.CharField(required=False, help_text="Name of the user or key that made the change.")
    action = serializers.CharField(required=False, help_text="For example policy.update.")
    object = serializers.CharField(required=False, help_text="Id of the changed object.")
    request_id = serializers.CharField(required=False, help_text="The `X-Request-Id` of the request that made it.")
    since = InstantField(required=False)
    until = InstantField(required=False)


class AuditView(Listed, ApiView):
    """Changes with their author, time and reason, newest first."""

    serializer_class = AuditSerializer
    ordering = ("-id",)
    queries = {"list": AuditQuery}
    scopes = {"list": "audit:read"}
    of_all_projects = ("*",)

    FILTERS = {
        "actor": "actor",
        "action": "action",
        "object": "object_id",
        "request_id": "request_id",
        "since": "at__gte",
        "until": "at__lt",
    }

    def get_queryset(self) -> QuerySet[AuditEntry]:
        chosen = {lookup: self.query[name] for name, lookup in self.FILTERS.items() if name in self.query}
        return AuditEntry.objects.filter(**chosen)
