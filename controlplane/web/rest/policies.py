"""The REST resources of policies with their limits, and of the global policy."""

from collections.abc import Mapping, Sequence
from operator import add
from typing import Any

from django.db.models import QuerySet, prefetch_related_objects
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.tables.searching import IndexedSearch
from controlplane.core.text import slug_error
from controlplane.objects.policies.actions import (
    create_policies,
    limits_of_new,
    lock_global_policy,
    replace_limits,
    set_global_policy,
)
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import SLUG_PATTERN, Project
from controlplane.traffic.usage import units
from controlplane.web.rest.review import ReviewedPolicy, ReviewedTrialSerializer, review_of_choice
from controlplane.web.restkit.batches.jobs import JobBatched, Key
from controlplane.web.restkit.batches.views import ADDRESS, batch_of, of_items
from controlplane.web.restkit.fields import MANAGED_BY, ReferenceField
from controlplane.web.restkit.limit_schema import REFERENCE
from controlplane.web.restkit.ordering import OrderField, SearchField, found_by
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import (
    MOST_UNKNOWN,
    CleanModelSerializer,
    ListQuery,
    OwnProject,
    StrictSerializer,
    unknown_field,
)
from controlplane.web.restkit.views import WARNING_HEADER, ApiView, Named
from controlplane.web.restkit.writes.conditions import check_precondition, etag
from controlplane.web.restkit.writes.trials import Trial, TrialSerializer
from enforcement.model.limit_fields import BY_NAME, FIELDS, NULLABLE
from enforcement.model.limits import InvalidLimit
from enforcement.model.limits import Limit as LimitValue
from enforcement.model.metered import InvalidMetering, Metering
from enforcement.model.metering_schema import METERING
from enforcement.model.sizes import MAX_LIMITS_PER_POLICY

PER_MINUTE = {"name": "per-minute", "algorithm": "sliding_window", "quota": 100, "window_seconds": 60}


# Warnings that a header names. The response to a dry run has all of them.
MOST_WARNINGS = 5


class WarningSerializer(serializers.Serializer):
    limit = serializers.CharField(help_text="The name of the limit.")
    field = serializers.CharField(help_text="The field of the limit, for example unit.")
    message = serializers.CharField(help_text="What may be a mistake, in words.")


class ItemWarningSerializer(WarningSerializer):
    item = serializers.IntegerField(help_text="The place of the policy among the items, from 0.")


DOUBTS = "What may be a mistake, and is no error."


class PolicyTrialSerializer(ReviewedTrialSerializer):
    warnings = WarningSerializer(many=True, help_text=DOUBTS)


class PolicyBatchTrialSerializer(TrialSerializer):
    warnings = ItemWarningSerializer(many=True, help_text=DOUBTS)


@extend_schema_field(REFERENCE)
class LimitField(serializers.Field):
    """A limit, read and checked by its value type in the library."""

    def to_internal_value(self, data: Any) -> LimitValue:
        if not isinstance(data, Mapping):
            raise ValidationError([ErrorDetail("Must be an object.", code="invalid")])
        unknown = sorted(data.keys() - LimitValue.FIELDS)[:MOST_UNKNOWN]
        if unknown:
            raise ValidationError({name: unknown_field(name, sorted(LimitValue.FIELDS)) for name in unknown})
        given = {name: value for name, value in data.items() if value is not None or name not in NULLABLE}
        if given.get("name") == "":
            raise ValidationError({"name": [ErrorDetail("Must not be empty.", code="invalid_limit")]})
        if isinstance(given.get("anchor"), str) and given.get("calendar") in ("week", "month"):
            raise ValidationError({"anchor": [ErrorDetail("Must be an integer.", code="invalid_limit")]})
        try:
            return LimitValue.from_json({"algorithm": "fixed_window", **given})
        except InvalidLimit as exc:
            raise ValidationError(_at(exc.field.split("."), exc)) from exc

    def to_representation(self, value: Limit) -> dict[str, Any]:
        """Return every field of the limit as a new dictionary, those with a default too."""
        given = value.as_value().to_json()
        values = {field.name: given.get(field.name, field.default) for field in FIELDS}
        return values | {"match": {part.name: part.default for part in BY_NAME["match"].parts} | values["match"]}


def _at(path: list[str], exc: InvalidLimit) -> dict[str, Any]:
    errors: Any = [ErrorDetail(exc.reason, code="required" if exc.reason == "Is required." else "invalid_limit")]
    for name in reversed(path):
        errors = {name: errors}
    return errors


class LimitsField(serializers.ListField):
    child = LimitField()

    def run_child_validation(self, data: list[Any]) -> list[LimitValue]:
        """Return the limits, or raise ValidationError for too many of them before any is looked at."""
        if len(data) > MAX_LIMITS_PER_POLICY:
            message = f"Must have at most {MAX_LIMITS_PER_POLICY} limits, got {len(data):,}."
            raise ValidationError([ErrorDetail(message, code="max_length")])
        values: list[LimitValue] = super().run_child_validation(data)
        return values

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
class PolicySerializer(OwnProject, CleanModelSerializer[Policy]):
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


class PolicyItemSerializer(PolicySerializer):
    """The serializer of an item of a batch. Its rows were read before, and slugs are looked up together."""

    clean_exclude = ("project",)
    clean_options = {"validate_unique": False, "validate_constraints": False}


class PolicyQuery(ListQuery):
    project = serializers.CharField(
        required=False, allow_blank=True, help_text="Slug of the owning project. If empty, the shared policies."
    )
    search = SearchField("slug, name or description")
    order = OrderField("slug", "name", "created_at", "updated_at", usual="slug")


POLICY_SEARCH = IndexedSearch(beginnings=("slug", "name", "description"), has_few_rows=True)


@batch_of(PolicyItemSerializer, PolicySerializer, warnings=ItemWarningSerializer(many=True, help_text=DOUBTS))
class PolicyView(ReviewedPolicy, JobBatched[Policy], Named[Policy]):
    """Named lists of limits, attached to tokens or projects, or applied to every request."""

    serializer_class = PolicySerializer
    lookup_field = "slug"
    lookup_value_regex = SLUG_PATTERN
    ordering = ("slug",)
    orders = {
        "slug": ("slug",),
        "name": ("name", "id"),
        "created_at": ("created_at", "id"),
        "updated_at": ("updated_at", "id"),
    }
    unique = "slug"
    queries = {"list": PolicyQuery}
    trials = {
        **dict.fromkeys(("create", "update", "partial_update"), PolicyTrialSerializer),
        ADDRESS: PolicyBatchTrialSerializer,
    }
    # Warnings about possible mistakes in the policy of the response, or in those of a batch.
    warned: Sequence[Mapping[str, Any]] = ()
    scopes = {
        "list": "policies:read",
        "retrieve": "policies:read",
        "create": "policies:write",
        "batch": "policies:write",
        "update": "policies:write",
        "partial_update": "policies:write",
        "destroy": "policies:write",
    }

    def get_queryset(self) -> QuerySet[Policy]:
        policies = self.access.policies().select_related("project").prefetch_related("limits")
        policies = found_by(POLICY_SEARCH, policies, self.query)
        if "project" in self.query:
            owner = self.query["project"]
            return policies.filter(project__slug=owner) if owner else policies.filter(project=None)
        return policies

    def answer(self, obj: Policy, code: int = 200, headers: dict[str, str] | None = None) -> Response:
        self.warned = [{name: warning[name] for name in ("limit", "field", "message")} for warning in _warnings([obj])]
        return self._warning(super().answer(obj, code, headers))

    def create_at_once(self) -> Response:
        response = super().create_at_once()
        self.warned = response.data["warnings"]
        return self._warning(response)

    def _warning(self, response: Response) -> Response:
        """Return a response with the header of the warnings, if there are any."""
        if self.warned:
            response[WARNING_HEADER] = _header_of(self.warned)
        return response

    @classmethod
    def told_beside(cls, rows: Sequence[Policy]) -> dict[str, list[Any]]:
        prefetch_related_objects(rows, "limits", "project")
        return {"warnings": _warnings(rows)}

    def review(self, tried: Trial) -> dict[str, Any]:
        return {**super().review(tried), "warnings": list(self.warned)}

    def may_create(self) -> bool:
        projects = self.access.projects().values_list("slug", flat=True)
        return any(not slug_error(self.kwargs["slug"], project) for project in projects)

    def check_writable(self, obj: Policy) -> None:
        if not self.access.owns(obj.project_id):
            raise PermissionDenied("This policy is shared by all projects, and this key is limited to some.")

    def locked(self, rows: QuerySet[Policy]) -> QuerySet[Policy]:
        # Without the prefetch, which would still return the old limits after they were replaced.
        return super().locked(rows).prefetch_related(None)

    def save_new(self, tx: OpenChange, serializer: Any) -> Policy:
        values = serializer.validated_data.pop("limits")
        policy = serializer.save()
        replace_limits(tx, policy, values)
        tx.created(policy)
        return policy

    @classmethod
    def create_items(cls, tx: OpenChange, items: Sequence[dict[str, Any]]) -> list[Policy]:
        cls.check_free(items)
        with of_items():
            create_policies(tx, policies := _with_limits(items))
        return [policy for policy, _ in policies]

    @classmethod
    def check_items(cls, items: Sequence[dict[str, Any]], others: Mapping[Key, int]) -> None:
        cls.check_free(items)
        with of_items():
            limits_of_new(_with_limits(items))

    def save_changed(self, tx: OpenChange, serializer: Any, before: dict[str, Any]) -> None:
        values = serializer.validated_data.pop("limits", None)
        limits = before["limits"] if values is None else [value.to_json() for value in values]
        if serializer.candidate(serializer.validated_data).as_record() == before and limits == before["limits"]:
            return
        policy = serializer.save()
        if limits != before["limits"]:
            replace_limits(tx, policy, values)
        tx.updated(policy, before)


def _warnings(policies: Sequence[Policy]) -> list[dict[str, Any]]:
    """Return what may be a mistake in saved policies, as :class:`ItemWarningSerializer` describes it."""
    names = ("item", "limit", "field", "message")
    return [dict(zip(names, warning, strict=True)) for warning in units.warnings(policies)]


def _header_of(warned: Sequence[Mapping[str, Any]]) -> str:
    """Return the value of the header with the first of these warnings. A header has ASCII only."""
    shown = warned[:MOST_WARNINGS]
    items = [f"items.{one['item']}." if "item" in one else "" for one in shown]
    texts = [f"limits.{one['limit']}.{one['field']}: {one['message']}" for one in shown]
    sentences = list(map(add, items, texts))
    more = [f"{len(warned) - MOST_WARNINGS} more."] if len(warned) > MOST_WARNINGS else []
    return " ".join([*sentences, *more]).encode("ascii", "backslashreplace").decode()


def _with_limits(items: Sequence[dict[str, Any]]) -> list[tuple[Policy, list[LimitValue]]]:
    """Return a new policy for each item, unsaved, with its limits."""
    fields = [{name: value for name, value in item.items() if name != "limits"} for item in items]
    return [(Policy(**values), item["limits"]) for values, item in zip(fields, items, strict=True)]


class GlobalSerializer(StrictSerializer):
    policy = ReferenceField("policies", allow_null=True, help_text="Slug of the policy that applies to every request.")


class GlobalView(ApiView[Policy]):
    """The policy that applies to every request of every project."""

    serializer_class = GlobalSerializer
    trials = {"update": ReviewedTrialSerializer}
    scopes = {"retrieve": "policies:read", "update": "policies:write"}
    of_all_projects = ("update",)

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.present()

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            lock_global_policy()
            check_precondition(request, GlobalPolicy())
            self.chosen = self.read_body().validated_data["policy"]
            set_global_policy(tx, self.chosen)
            return self.present()

    def review(self, tried: Trial) -> dict[str, Any]:
        return review_of_choice(self.chosen, GlobalPolicy().policy)

    def present(self) -> Response:
        policy = GlobalPolicy()
        return Response(self.get_serializer(policy).data, headers={"ETag": etag(policy)})


class GlobalPolicy:
    """The choice of the global policy, with the fields that a response and an ETag need."""

    pk = "global"

    def __init__(self) -> None:
        self.policy = Policy.objects.filter(is_global=True).first()

    def as_compared(self) -> dict[str, Any]:
        return {"policy": self.policy and self.policy.pk}
