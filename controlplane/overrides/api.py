"""The REST resource of overrides, whose changes may only be tried."""

from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema
from rest_framework.exceptions import ErrorDetail, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.api.fields import LimitReferenceField, ReferenceField
from controlplane.api.schema import example
from controlplane.api.serializers import CleanModelSerializer, ListQuery
from controlplane.api.views import ApiView, Created, Deleted, Listed, Retrieved, Updated
from controlplane.policies.actions import save_override
from controlplane.policies.models import Limit, Override
from controlplane.publishing.changes import Change
from controlplane.review.api import DryRunQuery, ReviewSerializer, Trying
from controlplane.review.overriding import override_review
from controlplane.review.reviews import Review

OVERRIDE_ID = "ovr_[0-9a-z]{1,36}"
# Who may not change a limit for all projects may not change it for one of them.
SHARED_LIMIT = "This limit belongs to a policy that all projects share, and this key is limited to some."


@example(limit="free/per-minute", project="chat", quota=500, reason="A launch", ends_at="2027-12-31T00:00:00Z")
class OverrideSerializer(CleanModelSerializer):
    limit = LimitReferenceField(help_text="policy-slug/limit-name")
    token = ReferenceField("tokens", by="id", allow_null=True, default=None, help_text="Id of the token, or null.")
    project = ReferenceField("projects", allow_null=True, default=None, help_text="Slug of the project, or null.")

    class Meta:
        model = Override
        fields = [
            *("id", "limit", "token", "project", "quota", "burst", "reason", "ends_at"),
            *("created_by", "created_at"),
        ]
        extra_kwargs = {"burst": {"default": None, "min_value": 1}, "ends_at": {"default": None}}
        read_only_fields = ["created_by"]

    def validate_limit(self, limit: Limit) -> Limit:
        if not self.context["access"].owns(limit.policy.project_id):
            raise ValidationError([ErrorDetail(SHARED_LIMIT, code="key_limited_to_projects")])
        return limit


class OverrideQuery(ListQuery):
    limit = LimitReferenceField(required=False, help_text="policy-slug/limit-name")
    token = ReferenceField("tokens", by="id", required=False, help_text="Id of the token.")
    project = ReferenceField("projects", required=False, help_text="Slug of the project that has the override.")


OVERRIDE_OR_REVIEW = PolymorphicProxySerializer("OverrideOrReview", [OverrideSerializer, ReviewSerializer], None)


class OverrideView(Trying, Listed, Created, Retrieved, Updated, Deleted, ApiView):
    """Another quota for one limit of one token or project, with a reason and an optional end."""

    serializer_class = OverrideSerializer
    lookup_field = "id"
    lookup_value_regex = OVERRIDE_ID
    ordering = ("-id",)
    queries = {"list": OverrideQuery, **dict.fromkeys(("create", "partial_update", "destroy"), DryRunQuery)}
    scopes = {
        "list": "policies:read",
        "retrieve": "policies:read",
        "create": "overrides:write",
        "partial_update": "overrides:write",
        "destroy": "overrides:write",
    }

    def get_queryset(self) -> QuerySet[Override]:
        chosen = {name: self.query[name] for name in ("limit", "token", "project") if name in self.query}
        rows = self.access.overrides().select_related("limit__policy", "token__project", "project")
        return rows.filter(**chosen)

    def check_writable(self, obj: Override) -> None:
        if not self.access.owns(obj.limit.policy.project_id):
            raise PermissionDenied(SHARED_LIMIT)

    @extend_schema(responses={201: OverrideSerializer, 200: ReviewSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        if not self.is_dry_run:
            return super().create(request, *args, **kwargs)

        def save(tx: Change) -> Review:
            return override_review(None, self.as_written(self.save_new(tx, self.read_body())), timezone.now())

        return self.tried(save)

    @extend_schema(responses=OVERRIDE_OR_REVIEW)
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        if not self.is_dry_run:
            return super().partial_update(request, *args, **kwargs)

        def save(tx: Change) -> Review:
            former = self.for_writing()
            self.save_changed(tx, self.read_body(former, partial=True), former.as_record())
            return override_review(former, self.as_written(former), timezone.now())

        return self.tried(save)

    @extend_schema(responses={204: None, 200: ReviewSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        if not self.is_dry_run:
            return super().destroy(request, *args, **kwargs)
        return self.tried(lambda tx: override_review(self.for_writing(), None, timezone.now()))

    def save_new(self, tx: Change, serializer: Any) -> Override:
        override = Override(**serializer.validated_data)
        save_override(tx, override)
        return override

    def save_changed(self, tx: Change, serializer: Any, before: dict[str, Any]) -> None:
        override = serializer.candidate(serializer.validated_data)
        if override.as_record() != before:
            save_override(tx, override)
