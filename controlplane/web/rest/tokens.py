"""The REST resources of tokens."""

from collections.abc import Sequence
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

from controlplane.changes.change.transaction import OpenChange
from controlplane.core.tables.searching import IndexedSearch
from controlplane.objects.emergency.models import suspended
from controlplane.objects.projects.actions import issue_token, issue_tokens, revoke_token, rotate_token
from controlplane.objects.projects.models import MAX_OVERLAP_SECONDS, Project, Token, TokenQuerySet
from controlplane.web.rest.projects import SuspendableView, WithSuspension
from controlplane.web.rest.review import ReviewedHolder, ReviewedTrialSerializer
from controlplane.web.restkit.batches.views import Batched, batch_of
from controlplane.web.restkit.fields import (
    LabelQueryField,
    LabelsField,
    ReferenceField,
    StrictIntegerField,
    with_labels,
)
from controlplane.web.restkit.ordering import OrderField, SearchField, found_by
from controlplane.web.restkit.problems import Conflict
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery, NoBody, StrictSerializer
from controlplane.web.restkit.views import ApiView, Deleted, Listed, Retrieved, Updated
from controlplane.web.restkit.writes.conditions import etag
from enforcement.model.instants import DAY_SECONDS
from enforcement.model.tokens import PREFIX_LENGTH

TOKEN_ID = "tok_[0-9a-z]{1,36}"
# The fields that decide which limits apply to a token. A key that may only issue tokens leaves them to the project.
DECIDING, DECIDING_SCOPE = ("policy", "labels"), "tokens:write"
UNSET = object()


@example(name="ci", labels={"team": "red"}, expires_at="2027-12-31T00:00:00Z")
class TokenSerializer(WithSuspension, CleanModelSerializer[Token]):
    project: serializers.Field = serializers.SlugField(source="project.slug", read_only=True)
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
    clean_exclude: tuple[str, ...] = ("digest", "prefix")

    class Meta:
        model = Token
        fields = [
            *("id", "project", "name", "prefix", "policy", "labels", "status", "suspended", "suspended_until"),
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
    """The serializer of an item of a batch. It names its project, and its rows were read before."""

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


class TokenQuery(ListQuery):
    labels = LabelQueryField()
    status = serializers.ChoiceField(
        ["active", "suspended", "revoked", "expired"],
        required=False,
        help_text="Suspended tokens are active too.",
    )

    search = SearchField("the name, the prefix or the id")
    order = OrderField("name", "created_at", usual="-created_at")


TOKEN_SEARCH = IndexedSearch(beginnings=("name",), exact_beginnings=("prefix",), wholes=("id",))


class AnyTokenQuery(TokenQuery):
    project = ReferenceField("projects", required=False, help_text="Slug of the project.")
    policy = ReferenceField("policies", required=False, help_text="Slug of the token's own policy.")
    name = serializers.CharField(required=False, max_length=200, help_text="The whole name.")
    prefix = serializers.CharField(
        required=False, max_length=PREFIX_LENGTH, help_text="The beginning of the secret, as a token shows it."
    )


class TokenView(ApiView[Token]):
    serializer_class: type[CleanModelSerializer] = TokenSerializer
    ordering = ("-id",)
    # As the indexes have them.
    orders = {"name": ("name", "-id"), "created_at": ("created_at", "id")}

    def rows(self) -> TokenQuerySet:
        return self.access.tokens().select_related("project", "policy", "suspension")

    def locked(self, rows: QuerySet[Token]) -> QuerySet[Token]:
        # The suspension is read after the lock. A row that is joined may be from before another one had the lock.
        return super().locked(rows.select_related(None).select_related("project", "policy"))

    def chosen(self, tokens: TokenQuerySet) -> QuerySet[Token]:
        """Return those of the tokens that the query of a list asks for."""
        names = [name for name in ("project", "policy", "name", "prefix") if name in self.query]
        tokens = with_labels(tokens.filter(**{name: self.query[name] for name in names}), self.query)
        match self.query.get("status"):
            case "active":
                tokens = tokens.live(timezone.now())
            case "suspended":
                tokens = tokens.live(timezone.now()).filter(suspended(timezone.now()))
            case "revoked":
                tokens = tokens.exclude(revoked_at=None)
            case "expired":
                tokens = tokens.filter(Q(revoked_at=None), expires_at__lte=timezone.now())
        return found_by(TOKEN_SEARCH, tokens, self.query)

    def issued(self, token: Token, secret: str) -> Response:
        token.secret = secret
        data = IssuedTokenSerializer(token, context=self.get_serializer_context()).data
        headers = {"Location": reverse("token-detail", args=[token.pk]), "ETag": etag(token)}
        return Response(data, status.HTTP_201_CREATED, headers=headers)


class ProjectTokenView(Listed[Token], TokenView):
    """Tokens of a project. Only the response to the creation contains the secret."""

    scopes = {"list": "tokens:read", "create": "tokens:issue"}
    queries = {"list": TokenQuery}

    def get_queryset(self) -> QuerySet[Token]:
        return self.chosen(self.rows().filter(project=self.project()))

    def project(self) -> Project:
        result = self.access.projects().filter(slug=self.kwargs["slug"]).first()
        if result is None:
            raise NotFound
        return result

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
class SingleTokenView(
    ReviewedHolder,
    SuspendableView[Token],
    Batched[Token],
    Listed[Token],
    Retrieved[Token],
    Updated[Token],
    Deleted[Token],
    TokenView,
):
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
        return self.chosen(self.rows()) if self.action == "list" else self.rows()

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
                raise Conflict(str(exc.message), exc.code or "") from exc
            return self.issued(issued, secret)

    def too_many(self, count: int) -> str:
        why = "Only the response shows their secrets, which no job may keep, so send several batches."
        return f"{super().too_many(count)} {why}"

    def save_batch(self, tx: OpenChange, items: Sequence[dict[str, Any]]) -> list[Token]:
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
