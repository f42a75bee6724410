"""The REST resources of consumers, who show a token of a project and see what concerns it, and nothing of others."""

from math import ceil
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.core.optional import COUNTERS
from controlplane.core.requests import log_author
from controlplane.objects.projects.models import Token
from controlplane.operations.explain.own_limits import limits_of, refusal_of, resumed_at, usage_of
from controlplane.web.restkit.fields import InstantField
from controlplane.web.restkit.problems import Problem, StoreUnavailable
from controlplane.web.restkit.views import ApiView
from enforcement.http.messages import DENIAL_FIELD, challenge
from enforcement.model.tokens import digest, is_well_formed
from enforcement.plan.decision import STATUSES
from enforcement.plan.sentences import sentence
from enforcement.store.client import STORE_ERRORS


class TokenRefused(Problem):
    """Raised for a token that every proxy refuses, with the status, the code and the header of their denials."""

    def __init__(self, reason: str, wait_seconds: int | None = None) -> None:
        self.status_code = STATUSES[reason]
        headers = {DENIAL_FIELD: reason}
        if self.status_code == 401:
            headers["WWW-Authenticate"] = challenge(reason)
        wait_ms = None if wait_seconds is None else wait_seconds * 1_000
        if wait_seconds is not None:
            headers["Retry-After"] = str(wait_seconds)
        super().__init__(sentence(self.status_code, reason, None, wait_ms), reason, headers)


class TokenAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[AnonymousUser, Token]:
        """Return an anonymous user and the token of the request, or raise TokenRefused."""
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        secret = secret.strip()
        if not secret:
            raise TokenRefused("token_required")
        token = None
        if scheme.lower() == "bearer" and is_well_formed(secret) and secret.startswith("sg_live_"):
            rows = Token.objects.select_related("project__suspension", "suspension")
            token = rows.filter(digest=digest(secret)).first()
        if token is None:
            raise TokenRefused("unknown_token")
        log_author(token.pk, "api")
        now = timezone.now()
        if reason := refusal_of(token, now):
            end = resumed_at(token, now) if reason == "suspended" else None
            raise TokenRefused(reason, max(1, ceil((end - now).total_seconds())) if end else None)
        return AnonymousUser(), token


def token_of(request: Request) -> Token:
    """Return the token of a request, or raise TokenRefused if it has none."""
    if not isinstance(request.auth, Token):
        raise TokenRefused("token_required")
    return request.auth


class HasToken(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return isinstance(request.auth, Token)


class TokenScheme(OpenApiAuthenticationExtension):
    target_class = TokenAuthentication
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        how = "A token of a project, as clients show it to the proxies."
        return {"type": "http", "scheme": "bearer", "bearerFormat": "sg_live_", "description": how}


class AppliesToSerializer(serializers.Serializer):
    """The requests to which a limit applies. Whatever is empty applies to all."""

    methods = serializers.ListField(child=serializers.CharField())
    path = serializers.CharField(allow_null=True)
    attributes = serializers.ListField(child=serializers.CharField(), help_text="Names of attributes.")


class ConsumerLimitSerializer(serializers.Serializer):
    """A limit of the token, with the members that the page of the proxies has."""

    policy = serializers.CharField(help_text="Slug of the policy.")
    limit = serializers.CharField(help_text="Name of the limit in the policy.")
    scope = serializers.ChoiceField(
        ["global", "project", "anonymous", "token"], help_text="Where the policy is attached."
    )
    enforcement = serializers.ChoiceField(["hard", "soft"], help_text="A soft limit never denies.")
    unit = serializers.CharField()
    quota = serializers.IntegerField()
    quota_source = serializers.ChoiceField(["policy", "override"])
    override_ends_at = InstantField(allow_null=True)
    capacity = serializers.IntegerField(help_text="The greatest cost that can be admitted at once.")
    algorithm = serializers.CharField()
    window_seconds = serializers.IntegerField(allow_null=True)
    calendar = serializers.CharField(allow_null=True)
    time_zone = serializers.CharField(allow_null=True)
    rollover = serializers.IntegerField(allow_null=True)
    slot_seconds = serializers.IntegerField(allow_null=True)
    charge_on = serializers.ListField(child=serializers.CharField())
    applies_to = AppliesToSerializer()
    partition_by = serializers.ListField(child=serializers.CharField())
    partition = serializers.DictField(child=serializers.CharField(), allow_null=True)
    shared_counter = serializers.BooleanField()
    unused_max = serializers.IntegerField()


class CountedLimitSerializer(ConsumerLimitSerializer):
    """A limit of the token, with what is used of it. Numbers are null if only other requests select the counter."""

    used = serializers.IntegerField(allow_null=True)
    left = serializers.IntegerField(allow_null=True)
    reset_at = InstantField(allow_null=True)
    reset_ms = serializers.IntegerField(allow_null=True)


class ConsumerUsageSerializer(serializers.Serializer):
    at = InstantField(help_text="When the counters were read.")
    revision = serializers.IntegerField(help_text="The last published revision.")
    limits = CountedLimitSerializer(many=True)


class ConsumerSerializer(serializers.ModelSerializer):
    project = serializers.CharField(source="project.slug", read_only=True, help_text="Slug of the project.")
    labels = serializers.DictField(child=serializers.CharField(), read_only=True)
    limits = serializers.SerializerMethodField()

    class Meta:
        model = Token
        fields = ["id", "name", "prefix", "project", "labels", "expires_at", "created_at", "limits"]

    @extend_schema_field(ConsumerLimitSerializer(many=True))
    def get_limits(self, token: Token) -> list[dict[str, Any]]:
        return limits_of(token)


class ConsumerView(ApiView[Token]):
    """The limits of a token, for its holder. Nothing is charged to them."""

    optional_source = COUNTERS
    authentication_classes = (TokenAuthentication,)
    permission_classes = (HasToken,)
    serializer_class = ConsumerSerializer
    conditional = False
    throttle_name = "rest-me"
    throttle_rate = "REST_CONSUMER_RATE"

    def throttled_holder(self, request: Request) -> str:
        return token_of(request).pk

    @extend_schema(responses=ConsumerSerializer)
    def me(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the token and its limits, without what is used of them."""
        return Response(ConsumerSerializer(token_of(request)).data)

    @extend_schema(responses=ConsumerUsageSerializer)
    def usage(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the limits of the token with what is used and left of each."""
        try:
            return Response(usage_of(token_of(request)))
        except STORE_ERRORS as exc:
            raise StoreUnavailable("The counters cannot be read now. Try again.") from exc
