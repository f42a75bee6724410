"""The REST resources of projects and their tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from django.core.exceptions import ValidationError as InvalidModel
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.api.fields import (
    MANAGED_BY,
    LabelsField,
    ReferenceField,
    StrictIntegerField,
    with_labels,
)
from controlplane.api.lists.ordering import found_by
from controlplane.api.problems import Conflict
from controlplane.api.schema import example
from controlplane.api.serializers import CleanModelSerializer, NoBody, StrictSerializer
from controlplane.api.views import ApiView, CreatedOrReplaced, Deleted, Listed, Retrieved, Updated
from controlplane.api.writes.batches import Batched, batch_of
from controlplane.api.writes.conditions import etag
from controlplane.emergency.actions import resume, suspend
from controlplane.emergency.models import is_suspended
from controlplane.projects.actions import issue_token, issue_tokens, revoke_token, rotate_token
from controlplane.projects.bulk import is_large, start_deletion
from controlplane.projects.listing import AnyTokenQuery, ProjectQuery, ProjectSearch, TokenQuery, TokenSearch
from controlplane.projects.models import MAX_OVERLAP_SECONDS, SLUG_PATTERN, Project, Token
from controlplane.publishing.changes import Change
from controlplane.review.api import ReviewedHolder, ReviewedTrialSerializer
from enforcement.model.limits import DAY_SECONDS
from enforcement.model.partitions import DEFAULT_CAP, MAX_CAP

SUSPENDED = "Whether every proxy refuses it for now."
TOKEN_ID = "tok_[0-9a-z]{1,36}"
# What decides which limits apply to a token. Whoever may only issue tokens leaves it to the project.
DECIDING, DECIDING_SCOPE = ("policy", "labels"), "tokens:write"
UNSET = object()


@example(slug="chat", name="Chat", policy="free")
class ProjectSerializer(CleanModelSerializer):
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

    suspended = serializers.SerializerMethodField(help_text=SUSPENDED)

    def get_suspended(self, project: Project) -> bool:
        return is_suspended(project)

    class Meta:
        model = Project
        fields = [
            *("id", "slug", "name", "policy", "anonymous_policy", "token_policy"),
            *("active", "suspended", "partition_cap", "time_zone", "managed_by", "version", "created_at"),
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


class ProjectItemSerializer(ProjectSerializer):
    """The same for one of many, whose rows were read before and whose slugs are looked up together."""

    clean_exclude = ("policy", "anonymous_policy", "token_policy")
    clean_options = {"validate_unique": False, "validate_constraints": False}


class DeletionSerializer(serializers.Serializer):
    job = serializers.CharField(help_text="Id of the job that deletes the project.")


class SuspendableView:
    """The actions of a resource that suspend and resume it."""

    @extend_schema(request=NoBody)
    @action(detail=True, methods=["post"])
    def suspend(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Suspend it for now, so that every proxy refuses it within a second. Repeating this changes nothing."""
        return self._suspend(request, suspend)

    @extend_schema(request=NoBody)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """End the suspension, so that every proxy lets it in again. Without one, this changes nothing."""
        return self._suspend(request, lambda tx, row: is_suspended(row) and resume(tx, row.suspension))

    def _suspend(self, request: Request, deed: Callable[[Change, Any], Any]) -> Response:
        NoBody(data=request.data).is_valid(raise_exception=True)
        with self.change() as tx:
            row = self.for_writing()
            deed(tx, row)
            return self.answer(self.as_written(row))


@batch_of(ProjectItemSerializer, ProjectSerializer)
class ProjectView(ReviewedHolder, SuspendableView, Batched, Listed, CreatedOrReplaced, Retrieved, Deleted, ApiView):
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
        return found_by(ProjectSearch(), rows.filter(**chosen), self.query)

    def save_batch(self, tx: Change, items: Sequence[dict[str, Any]]) -> list[Project]:
        """Save the projects with few statements."""
        self.check_free(items)
        projects = Project.objects.bulk_create([Project(**item) for item in items])
        tx.record_many("project.create", ((project, None, project.as_record()) for project in projects))
        return self.all_as_written(projects)

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


@example(name="ci", labels={"team": "red"}, expires_at="2027-12-31T00:00:00Z")
class TokenSerializer(CleanModelSerializer):
    project = serializers.SlugField(source="project.slug", read_only=True)
    policy = ReferenceField(
        "policies",
        allow_null=True,
        required=False,
        help_text="Slug of the token's policy. If left out, a new token gets the token_policy of its project. If null, "
        "it has none.",
    )
    labels = LabelsField(required=False, help_text="All labels of the token. A change replaces them.")
    status = serializers.ChoiceField(["active", "revoked", "expired"], read_only=True)
    replaced_by = serializers.CharField(
        source="replaced_by_id", read_only=True, allow_null=True, help_text="Id of the token that a rotation made."
    )
    suspended = serializers.SerializerMethodField(help_text=SUSPENDED)
    clean_exclude = ("digest", "prefix")

    def get_suspended(self, token: Token) -> bool:
        return is_suspended(token)

    class Meta:
        model = Token
        fields = [
            *("id", "project", "name", "prefix", "policy", "labels", "status", "suspended"),
            *("expires_at", "revoked_at", "replaced_by", "last_used_at", "created_at"),
        ]
        extra_kwargs = {"expires_at": {"default": None}}

    def candidate(self, attrs: dict[str, Any]) -> Token:
        token = super().candidate(attrs)
        token.project = token.project if self.instance else self.context["project"]
        return token

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        deciding = [name for name in DECIDING if name in attrs and attrs[name] != self._present(name)]
        if deciding and not self.context["access"].key.allows(DECIDING_SCOPE):
            message = f"Must be left out by a key without the scope {DECIDING_SCOPE}, because it decides limits."
            raise ValidationError({name: [ErrorDetail(message, code="insufficient_scope")] for name in deciding})
        return super().validate(attrs)

    def _present(self, name: str) -> Any:
        """Return what the field is without the request, of a new token UNSET for the policy, which is then chosen."""
        return getattr(self.instance, name) if self.instance else {"labels": {}}.get(name, UNSET)


class IssuedTokenSerializer(TokenSerializer):
    secret = serializers.CharField(read_only=True, help_text="Shown in this response only.")

    class Meta(TokenSerializer.Meta):
        fields = [*TokenSerializer.Meta.fields, "secret"]


class TokenItemSerializer(TokenSerializer):
    """The same for one of many, which names its project, and whose rows were read before."""

    project = ReferenceField("projects", help_text="Slug of the project.")
    clean_exclude = (*TokenSerializer.clean_exclude, "project", "policy")
    clean_options = {"validate_unique": False, "validate_constraints": False}

    def candidate(self, attrs: dict[str, Any]) -> Token:
        return Token(**{"policy": attrs["project"].token_policy, **attrs})


class RotationSerializer(StrictSerializer):
    overlap_seconds = StrictIntegerField(
        default=DAY_SECONDS,
        max_value=MAX_OVERLAP_SECONDS,
        help_text="How long the old token stays valid. With 0 it is revoked at once.",
    )


class TokenView(ApiView):
    serializer_class = TokenSerializer
    ordering = ("-id",)
    # As the indexes have them.
    orders = {"name": ("name", "-id"), "created_at": ("created_at", "id")}

    def get_queryset(self) -> QuerySet[Token]:
        return self.access.tokens().select_related("project", "policy", "suspension")

    def chosen(self, tokens: QuerySet[Token]) -> QuerySet[Token]:
        """Return those of the tokens that the query of a list asks for."""
        names = [name for name in ("project", "policy", "name", "prefix") if name in self.query]
        tokens = found_by(TokenSearch(), tokens, self.query)
        found = with_labels(tokens.filter(**{name: self.query[name] for name in names}), self.query)
        match self.query.get("status"):
            case "active":
                return found.live(timezone.now())
            case "suspended":
                return found.live(timezone.now()).exclude(suspension=None)
            case "revoked":
                return found.exclude(revoked_at=None)
            case "expired":
                return found.filter(Q(revoked_at=None), expires_at__lte=timezone.now())
        return found

    def issued(self, token: Token, secret: str) -> Response:
        token.secret = secret
        data = IssuedTokenSerializer(token, context=self.get_serializer_context()).data
        headers = {"Location": reverse("token-detail", args=[token.pk]), "ETag": etag(token)}
        return Response(data, status.HTTP_201_CREATED, headers=headers)


class ProjectTokenView(Listed, TokenView):
    """Tokens of a project. Only the response to the creation contains the secret."""

    scopes = {"list": "tokens:read", "create": "tokens:issue"}
    queries = {"list": TokenQuery}

    def get_queryset(self) -> QuerySet[Token]:
        return self.chosen(super().get_queryset().filter(project=self.project()))

    def project(self) -> Project:
        found = self.access.projects().filter(slug=self.kwargs["slug"]).first()
        if found is None:
            raise NotFound
        return found

    @extend_schema(responses={201: IssuedTokenSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            project = self.project()
            serializer = TokenSerializer(
                data=request.data, context={**self.get_serializer_context(), "project": project}
            )
            serializer.is_valid(raise_exception=True)
            token, secret = issue_token(tx, project=project, **serializer.validated_data)
            return self.issued(token, secret)


@batch_of(TokenItemSerializer, IssuedTokenSerializer)
class SingleTokenView(ReviewedHolder, SuspendableView, Batched, Listed, Retrieved, Updated, Deleted, TokenView):
    """A token, which can be renamed, given another policy, labels or end, revoked, and replaced."""

    lookup_field = "id"
    lookup_value_regex = TOKEN_ID
    queries = {"list": AnyTokenQuery}
    trials = {"partial_update": ReviewedTrialSerializer}
    scopes = {
        "list": "tokens:read",
        "retrieve": "tokens:read",
        "batch": "tokens:issue",
        "partial_update": "tokens:issue",
        "destroy": "tokens:write",
        "revoke": "tokens:issue",
        "rotate": "tokens:issue",
        "suspend": "tokens:write",
        "resume": "tokens:write",
    }

    def get_queryset(self) -> QuerySet[Token]:
        rows = super().get_queryset()
        return self.chosen(rows) if self.action == "list" else rows

    @extend_schema(request=NoBody, responses=TokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Revoke the token, so that every proxy refuses it. Repeating this changes nothing."""
        self.read_nothing()
        with self.change() as tx:
            token = self.for_writing()
            revoke_token(tx, token)
            return self.answer(self.as_written(token))

    @extend_schema(request=RotationSerializer, responses={201: IssuedTokenSerializer})
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Replace the token by one with the same name, policy, labels, overrides and life span."""
        serializer = RotationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with self.change() as tx:
            token = self.for_writing()
            try:
                issued, secret = rotate_token(tx, token, serializer.validated_data["overlap_seconds"])
            except InvalidModel as exc:
                raise Conflict(exc.message, exc.code) from exc
            return self.issued(issued, secret)

    def save_batch(self, tx: Change, items: Sequence[dict[str, Any]]) -> list[Token]:
        """Save the tokens with few statements, and return them with their secrets."""
        tokens = [Token(**{"policy": item["project"].token_policy, **item}) for item in items]
        secrets = issue_tokens(tx, tokens)
        issued = self.all_as_written(tokens)
        for token, secret in zip(issued, secrets, strict=True):
            token.secret = secret
        return issued

    def read_nothing(self) -> None:
        NoBody(data=self.request.data).is_valid(raise_exception=True)


ProjectTokenView.view_of_one = SingleTokenView
