"""The REST resource of management keys. With it a key makes and changes keys, but none that is more than itself."""

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError as InvalidModel
from django.db.models import QuerySet
from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import AuthenticationFailed, ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.change.transaction import OpenChange
from controlplane.objects.keys import networks
from controlplane.objects.keys.actions import issue_management_key, revoke_management_key, rotate_management_key
from controlplane.objects.keys.bounds import CODE, excess
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.keys.scopes import SCOPES
from controlplane.objects.projects.models import MAX_OVERLAP_SECONDS, Project
from controlplane.web.restkit.authentication import UNKNOWN, Access, InsufficientScope
from controlplane.web.restkit.fields import StrictIntegerField, StringField
from controlplane.web.restkit.problems import Conflict, Problem, model_errors
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery, NoBody, StrictSerializer
from controlplane.web.restkit.views import Listed, Retrieved, Updated
from controlplane.web.restkit.writes.conditions import etag
from enforcement.model.instants import DAY_SECONDS

KEY_ID = "mgk_[0-9a-z]{1,36}"
STATES = ("active", "revoked", "expired")


class KeyExceedsOwn(Problem):
    """Raised if a key would change another one that is more than itself."""

    status_code = status.HTTP_403_FORBIDDEN
    default_code = CODE

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__(f"This key is more than your own in: {', '.join(found)}. Change it with a greater one.")


@extend_schema_field({"type": "array", "items": {"type": "string"}, "maxItems": 1000, "example": ["chat"]})
class ProjectsField(serializers.Field):
    """Projects by their slugs. The key that asks must see each of them."""

    default_error_messages = {
        "invalid": "Must be a list of slugs.",
        "does_not_exist": "There is no project {value!r}.",
    }

    def to_internal_value(self, data: Any) -> list[Project]:
        if not isinstance(data, list) or not all(isinstance(slug, str) for slug in data):
            self.fail("invalid")
        rows = self.context["access"].projects().filter(slug__in=data)
        found = {project.slug: project for project in rows}
        for slug in data:
            if slug not in found:
                self.fail("does_not_exist", value=slug)
        return list(found.values())

    def to_representation(self, value: Any) -> list[str]:
        return [project.slug for project in value.all()]


class NetworksField(serializers.ListField):
    """Networks, which another program may have written in a form that nobody can set."""

    def to_representation(self, data: Any) -> Any:
        return networks.as_stored(data)


@example(name="ci", scopes=["policies:read", "policies:write"], projects=["chat"], networks=["192.0.2.0/24"])
class KeySerializer(CleanModelSerializer[ManagementKey]):
    scopes = serializers.ListField(
        child=serializers.ChoiceField(SCOPES), allow_empty=False, max_length=len(SCOPES), help_text="What it may do."
    )
    projects = ProjectsField(default=list, help_text="Slugs. Empty only for a key of all projects, or of deleted ones.")
    networks = NetworksField(
        child=StringField(),
        allow_null=True,
        allow_empty=False,
        max_length=networks.MAX_NETWORKS,
        default=None,
        help_text="CIDR blocks or addresses from which it may be used. If null, from everywhere.",
    )
    status = serializers.ChoiceField(STATES, read_only=True)
    replaced_by = serializers.CharField(
        source="replaced_by_id", read_only=True, allow_null=True, help_text="Id of the key that rotation made, or null."
    )

    class Meta:
        model = ManagementKey
        fields = [
            *("id", "name", "prefix", "scopes", "all_projects", "projects", "networks", "status"),
            *("expires_at", "revoked_at", "replaced_by", "last_used_at", "created_at"),
        ]
        extra_kwargs = {"expires_at": {"default": None}, "all_projects": {"default": False}}

    def validate_networks(self, value: list[str] | None) -> list[str] | None:
        try:
            return None if value is None else networks.normal(value)
        except ValueError as exc:
            raise ValidationError([ErrorDetail(str(exc), code="rule")]) from exc

    def candidate(self, attrs: dict[str, Any]) -> ManagementKey:
        """Return a copy of the row, or a new one, with the values of *attrs*, apart from the projects."""
        return super().candidate({name: value for name, value in attrs.items() if name != "projects"})

    def projects_of(self, attrs: dict[str, Any]) -> list[Project]:
        """Return the projects that the key would have."""
        return attrs["projects"] if "projects" in attrs or not self.instance else list(self.instance.projects.all())

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        super().validate(attrs)
        candidate, projects = self.candidate(attrs), self.projects_of(attrs)
        if self.instance and not self.instance.is_live and set(projects) != set(self.instance.projects.all()):
            message = f"Must not be changed, because this management key is {self.instance.status}."
            raise ValidationError({"projects": [ErrorDetail(message, code="ended")]})
        if found := excess(self.context["access"].key, candidate, projects):
            raise ValidationError({name: [ErrorDetail(text, code=CODE)] for name, text in found.items()})
        if not self.instance or not {"projects", "all_projects"}.isdisjoint(attrs):
            try:
                candidate.check_reach(projects)
            except InvalidModel as exc:
                raise ValidationError(model_errors(exc)) from exc
        return attrs

    def record(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Return what the audit would keep of the changed row."""
        slugs = sorted(project.slug for project in self.projects_of(attrs))
        return {**self.candidate(attrs).as_record(), "projects": slugs}


class IssuedKeySerializer(KeySerializer):
    secret = serializers.CharField(read_only=True, help_text="Shown in this response only.")

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "secret"]


class KeyRotationSerializer(StrictSerializer):
    overlap_seconds = StrictIntegerField(
        default=DAY_SECONDS,
        max_value=MAX_OVERLAP_SECONDS,
        help_text="How long the old key stays valid. With 0 it is revoked at once.",
    )


class KeyQuery(ListQuery):
    status = serializers.ChoiceField(STATES, required=False)
    name = serializers.CharField(required=False, max_length=200, help_text="The whole name.")


class KeyView(Listed[ManagementKey], Retrieved[ManagementKey], Updated[ManagementKey]):
    """
    Credentials of programs that use this API.

    A key sees those that are limited to its own projects. What it makes or changes never is more than itself, in
    scopes, projects, networks or end.
    """

    serializer_class = KeySerializer
    lookup_field = "id"
    lookup_value_regex = KEY_ID
    ordering = ("-id",)
    queries = {"list": KeyQuery}
    scopes = {
        "list": "keys:read",
        "retrieve": "keys:read",
        "create": "keys:write",
        "partial_update": "keys:write",
        "rotate": "keys:write",
        "revoke": "keys:write",
    }

    def get_queryset(self) -> QuerySet[ManagementKey]:
        keys = ManagementKey.objects.prefetch_related("projects")
        if not self.access.all_projects:
            keys = keys.within(self.access.project_ids)
        if "name" in self.query:
            keys = keys.filter(name=self.query["name"])
        match self.query.get("status"):
            case "active":
                return keys.live(timezone.now())
            case "revoked":
                return keys.exclude(revoked_at=None)
            case "expired":
                return keys.filter(revoked_at=None, expires_at__lte=timezone.now())
        return keys

    @extend_schema(responses={201: IssuedKeySerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            self.lock_own()
            key, secret = issue_management_key(tx, **self.read_body().validated_data)
            return self.issued(key, secret)

    def lock_own(self, *others: str) -> None:
        """
        Lock the key that asks, and other keys, and judge by what it is now.

        Another request may be narrowing or revoking it. All are locked in one order, so that no two requests wait for
        each other.

        Raises:
            AuthenticationFailed: The key has ended meanwhile.
            InsufficientScope: It has lost the scope meanwhile.
        """
        wanted = ManagementKey.objects.filter(pk__in=[self.access.key.pk, *others])
        locked = {key.pk: key for key in wanted.order_by("pk").select_for_update(of=("self",))}
        own = locked.get(self.access.key.pk)
        if own is None or not own.is_live:
            raise AuthenticationFailed(UNKNOWN)
        if not own.allows(self.scopes[self.action]):
            raise InsufficientScope(self.scopes[self.action])
        self.request.auth = Access.of(own)

    def for_writing(self) -> ManagementKey:
        self.lock_own(self.kwargs["id"])
        return super().for_writing()

    def check_writable(self, obj: ManagementKey) -> None:
        # As it was before the change. Otherwise a key could narrow or revoke a greater one, or take over its secret.
        if found := excess(self.access.key, obj, obj.projects.all()):
            raise KeyExceedsOwn(found)

    def save_changed(self, tx: OpenChange, serializer: KeySerializer, before: dict[str, Any]) -> None:
        if serializer.record(serializer.validated_data) != before:
            tx.updated(serializer.save(), before)

    def issued(self, key: ManagementKey, secret: str) -> Response:
        data = {**self.get_serializer(key).data, "secret": secret}
        headers = {"Location": reverse("management-key-detail", args=[key.pk]), "ETag": etag(key)}
        return Response(data, status.HTTP_201_CREATED, headers=headers)

    @extend_schema(request=NoBody, responses=KeySerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Revoke the key, so that this API refuses it. Keys that it has made stay. Repeating this changes nothing."""
        NoBody(data=request.data).is_valid(raise_exception=True)
        with self.change() as tx:
            key = self.for_writing()
            revoke_management_key(tx, key)
            return self.answer(self.as_written(key))

    @extend_schema(request=KeyRotationSerializer, responses={201: IssuedKeySerializer})
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Replace the key by one with the same name, scopes, projects, networks and life span."""
        serializer = KeyRotationSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        with self.change() as tx:
            key = self.for_writing()
            overlap, latest = serializer.validated_data["overlap_seconds"], self.access.key.expires_at
            try:
                issued, secret = rotate_management_key(tx, key, overlap, latest)
            except InvalidModel as exc:
                raise Conflict(" ".join(exc.messages), getattr(exc, "code", None) or "") from exc
            return self.issued(issued, secret)
