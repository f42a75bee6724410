"""The REST resource of projects."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.db.models import QuerySet
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.tables.searching import IndexedSearch
from controlplane.objects.emergency.actions import resume, set_end, suspend
from controlplane.objects.emergency.models import is_suspended, suspension_of
from controlplane.objects.projects.models import SLUG_PATTERN, Project, Token
from controlplane.operations.jobs.many_tokens import is_large, start_deletion
from controlplane.web.rest.review import ReviewedHolder, ReviewedTrialSerializer
from controlplane.web.restkit.batches.jobs import JobBatched, Key
from controlplane.web.restkit.batches.views import batch_of
from controlplane.web.restkit.fields import MANAGED_BY, InstantField, QueryBooleanField, ReferenceField
from controlplane.web.restkit.ordering import OrderField, SearchField, found_by
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery, NoBody, StrictSerializer
from controlplane.web.restkit.views import Named, Written
from enforcement.model.partitions import DEFAULT_CAP, MAX_CAP


class WithSuspension(serializers.Serializer):
    """A mixin for what can be suspended."""

    suspended = serializers.SerializerMethodField(help_text="Whether every proxy refuses it for now.")
    suspended_until = serializers.SerializerMethodField(
        help_text="When its suspension ends by itself. Null without an end, and if it is not suspended."
    )

    def get_suspended(self, row: Any) -> bool:
        return is_suspended(row, timezone.now())

    @extend_schema_field(InstantField(allow_null=True))
    def get_suspended_until(self, row: Any) -> str | None:
        if not is_suspended(row, timezone.now()) or row.suspension.ends_at is None:
            return None
        result: str = InstantField().to_representation(row.suspension.ends_at)
        return result


class EndSerializer(StrictSerializer):
    ends_at = InstantField(
        required=False,
        allow_null=True,
        help_text="When the suspension ends by itself. If it is null or left out, it has no end. Of what is suspended "
        "already, it changes the end, and left out it changes nothing.",
    )


TOKEN_ID = "tok_[0-9a-z]{1,36}"
# The fields that decide which limits apply to a token. A key that may only issue tokens leaves them to the project.
DECIDING, DECIDING_SCOPE = ("policy", "labels"), "tokens:write"
UNSET = object()


@example(slug="chat", name="Chat", policy="free")
class ProjectSerializer(WithSuspension, CleanModelSerializer[Project]):
    policy = ReferenceField("policies", allow_null=True, default=None, help_text="Slug of the project's policy.")
    anonymous_policy = ReferenceField(
        "policies",
        allow_null=True,
        default=None,
        help_text="Slug of the policy of requests without a token. If null, they are refused.",
    )
    token_policy = ReferenceField(
        "policies",
        allow_null=True,
        default=None,
        help_text="Slug of the policy of each new token that is created without one. Existing tokens stay as they are.",
    )

    class Meta:
        model = Project
        fields = [
            *("id", "slug", "name", "policy", "anonymous_policy", "token_policy"),
            *(
                "active",
                "suspended",
                "suspended_until",
                "partition_cap",
                "time_zone",
                "managed_by",
                "version",
                "created_at",
            ),
        ]
        extra_kwargs = {
            "managed_by": MANAGED_BY,
            "active": {"default": True},
            "time_zone": {"default": "UTC", "allow_blank": False},
            "partition_cap": {"default": DEFAULT_CAP, "min_value": 1, "max_value": MAX_CAP},
        }
        read_only_fields = ["version"]

    def validate_slug(self, slug: str) -> str:
        return self._kept("slug", slug)

    def validate_partition_cap(self, cap: int) -> int:
        return self._kept("partition_cap", cap)

    def _kept(self, name: str, value: Any) -> Any:
        """Return the value, or raise ValidationError if the key would change a field that is for operators."""
        if self.instance and getattr(self.instance, name) != value and not self.context["access"].all_projects:
            message = "Must not be changed by a key that is limited to projects."
            raise ValidationError([ErrorDetail(message, code="key_limited_to_projects")])
        return value


PROJECT_SEARCH = IndexedSearch(beginnings=("slug", "name"), has_few_rows=True)


class ProjectQuery(ListQuery):
    policy = ReferenceField("policies", required=False, help_text="Slug of the project's policy.")
    active = QueryBooleanField(required=False)
    search = SearchField("slug or name")
    order = OrderField("slug", "name", "created_at", usual="slug")


class ProjectItemSerializer(ProjectSerializer):
    """The serializer of an item of a batch. Its rows were read before, and slugs are looked up together."""

    clean_exclude = ("policy", "anonymous_policy", "token_policy")
    clean_options = {"validate_unique": False, "validate_constraints": False}


class DeletionSerializer(serializers.Serializer):
    job = serializers.CharField(help_text="Id of the job that deletes the project.")


class SuspendableView[H: (Token, Project)](Written[H]):
    """The actions of a resource that suspend and resume it."""

    @extend_schema(request=EndSerializer)
    @action(detail=True, methods=["post"])
    def suspend(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Suspend it for now, so that every proxy refuses it within a second, until ``ends_at`` or until it is resumed.
        Repeating this changes nothing but the end, if there is one in the body.
        """
        body = EndSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        return self._suspend(lambda tx, row: _suspend_until(tx, row, body.validated_data))

    @extend_schema(request=NoBody)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """End the suspension, so that every proxy lets it in again. Without one, this changes nothing."""
        NoBody(data=request.data).is_valid(raise_exception=True)
        return self._suspend(_resume)

    def _suspend(self, deed: Callable[[OpenChange, H], None]) -> Response:
        with self.change() as tx:
            row = self.for_writing()
            deed(tx, row)
            return self.answer(self.as_written(row))


def _resume(tx: OpenChange, row: Token | Project) -> None:
    if suspension := suspension_of(row):
        resume(tx, suspension)


def _suspend_until(tx: OpenChange, row: Token | Project, given: dict[str, Any]) -> None:
    found = suspend(tx, row, given.get("ends_at"))
    if "ends_at" in given:
        set_end(tx, found, given["ends_at"])


@batch_of(ProjectItemSerializer, ProjectSerializer)
class ProjectView(ReviewedHolder, SuspendableView[Project], JobBatched[Project], Named[Project]):
    """Tenants. A project owns its tokens, which are deleted with it."""

    serializer_class = ProjectSerializer
    lookup_field = "slug"
    lookup_value_regex = SLUG_PATTERN
    ordering = ("slug",)
    orders = {"slug": ("slug",), "name": ("name", "id"), "created_at": ("created_at", "id")}
    queries = {"list": ProjectQuery}
    of_all_projects = ("create", "batch")
    unique = "slug"
    trials = dict.fromkeys(("update", "partial_update"), ReviewedTrialSerializer)
    scopes = {
        "list": "projects:read",
        "retrieve": "projects:read",
        "create": "projects:write",
        "batch": "projects:write",
        "update": "projects:write",
        "partial_update": "projects:write",
        "destroy": "projects:write",
        "suspend": "projects:write",
        "resume": "projects:write",
    }

    def get_queryset(self) -> QuerySet[Project]:
        rows = self.access.projects().select_related("policy", "anonymous_policy", "token_policy", "suspension")
        if self.action != "list":
            return rows
        chosen = {name: self.query[name] for name in ("policy", "active") if name in self.query}
        return found_by(PROJECT_SEARCH, rows.filter(**chosen), self.query)

    @classmethod
    def create_items(cls, tx: OpenChange, items: Sequence[dict[str, Any]]) -> list[Project]:
        """Save the projects with few statements."""
        cls.check_free(items)
        projects = Project.objects.bulk_create([Project(**item) for item in items])
        tx.record_many("project.create", ((project, None, project.as_record()) for project in projects))
        return projects

    @classmethod
    def check_items(cls, items: Sequence[dict[str, Any]], others: Mapping[Key, int]) -> None:
        cls.check_free(items)

    @extend_schema(responses={204: None, 202: DeletionSerializer})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Delete the project, together with what belongs to it.

        If it has more than 500 tokens, it becomes inactive, and a job deletes it. The response is then 202.
        """
        with self.change() as tx:
            project = self.for_writing()
            if not is_large([project.pk]):
                tx.delete(project)
                return Response(status=status.HTTP_204_NO_CONTENT)
            key, by = self.access.key, tx.actor
            named = {"created_by": by.name, "channel": by.channel, "request_id": by.request_id, "reason": tx.reason}
            job = start_deletion(tx, project, key=key, **named)
            address = reverse("job-detail", args=[job.pk])
            return Response({"job": job.pk}, status.HTTP_202_ACCEPTED, headers={"Location": address})
