"""The REST resources of suspensions and of the broken glass, for operators."""

from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.objects.emergency.actions import break_glass, end_after, mend_glass, resume, suspend_value
from controlplane.objects.emergency.models import BreakGlass, EndedSuspension, Suspended, Suspension
from controlplane.objects.projects.models import Project
from controlplane.web.restkit.fields import InstantField, ReasonField, ReferenceField, StrictIntegerField, StringField
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery, StrictSerializer
from controlplane.web.restkit.views import ApiView, Listed, Retrieved
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH
from enforcement.store_calls.emergency import MAX_GLASS_SECONDS

SUSPENSION_ID = "sus_[0-9a-z]{1,36}"
KINDS = ("token", "project", "value")
# A shorter time is a mistake in the unit.
LEAST_GLASS_SECONDS = 60
WRITTEN = ("name", "value", "within", "ends_at")


@extend_schema_field({"type": "string"})
class OwnerField(ReferenceField):
    """The project in which a value is suspended, or the one that is suspended, or whose token is."""

    def get_attribute(self, instance: Suspension) -> Project | None:
        return instance.token.project if instance.token else instance.project or instance.within


@example(project="chat", name="session", value="9f2c", reason="It loops")
class SuspensionSerializer(CleanModelSerializer[Suspension]):
    kind = serializers.SerializerMethodField(help_text="What is suspended. A new one is always of a value.")
    project = OwnerField(
        "projects",
        source="within",
        allow_null=True,
        help_text="Slug of the project in which it is suspended. If null, in all projects.",
    )
    token = serializers.CharField(source="token_id", read_only=True, allow_null=True, help_text="Id of the token.")
    name = StringField(
        max_length=MAX_ATTRIBUTE_NAME_LENGTH,
        help_text="The attribute as proxies name it, such as session, ip, header.x-id or label.team.",
    )
    value = StringField(max_length=MAX_ATTRIBUTE_LENGTH, help_text="The value that every proxy refuses.")
    reason = ReasonField()
    ended_at = serializers.SerializerMethodField(help_text="When it ended. Null while it is in force.")
    ended_by = serializers.SerializerMethodField(help_text="Who resumed it, or the task that did so at its end.")

    @extend_schema_field({"type": "string", "enum": list(KINDS)})
    def get_kind(self, row: Suspended) -> str:
        return row.kind

    @extend_schema_field(InstantField(allow_null=True))
    def get_ended_at(self, row: Suspended) -> str | None:
        if isinstance(row, EndedSuspension):
            return InstantField().to_representation(row.ended_at)
        if row.ends_at is None or row.is_in_force(timezone.now()):
            return None
        return InstantField().to_representation(row.ends_at)

    @extend_schema_field({"type": "string", "nullable": True})
    def get_ended_by(self, row: Suspended) -> str | None:
        return row.ended_by if isinstance(row, EndedSuspension) else None

    class Meta:
        model = Suspension
        fields = [
            *("id", "kind", "project", "token", "name", "value", "reason", "ends_at"),
            *("by", "at", "ended_at", "ended_by"),
        ]
        read_only_fields = ["by", "at"]
        extra_kwargs = {
            "ends_at": {"default": None, "help_text": "When it ends by itself in every proxy. Null: it has no end."}
        }


class SuspensionQuery(ListQuery):
    state = serializers.ChoiceField(["live", "ended"], default="live", help_text="Ended ones are kept as history.")
    kind = serializers.ChoiceField(list(KINDS), required=False)
    project = ReferenceField("projects", required=False, help_text="Slug of the project that is concerned.")


class SuspensionView(Listed[Suspended], Retrieved[Suspended]):
    """
    Suspensions, for which every proxy refuses requests. A new one is of a value of an attribute. A deletion ends it.
    """

    serializer_class = SuspensionSerializer
    lookup_field = "id"
    lookup_value_regex = SUSPENSION_ID
    ordering = ("-id",)
    conditional = False
    queries = {"list": SuspensionQuery}
    scopes = {
        "list": "emergency:read",
        "retrieve": "emergency:read",
        "create": "emergency:write",
        "destroy": "emergency:write",
    }
    of_all_projects = ("*",)

    def get_queryset(self) -> QuerySet[Suspended]:
        model = EndedSuspension if self.query.get("state") == "ended" else Suspension
        rows = model.objects.select_related("token__project", "project", "within")
        if self.query.get("state") == "live":
            rows = rows.in_force(timezone.now())
        if kind := self.query.get("kind"):
            of = {"token": {"token": None}, "project": {"project": None}}.get(kind)
            rows = rows.exclude(**of) if of else rows.filter(token=None, project=None)
        if project := self.query.get("project"):
            rows = rows.concerning(project)
        return rows

    def get_object(self) -> Suspended:
        """Return the row, which may be one of the history if it is only read."""
        if self.action == "retrieve":
            rows = EndedSuspension.objects.select_related("token__project", "project", "within")
            if ended := rows.filter(pk=self.kwargs["id"]).first():
                return ended
        return super().get_object()

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        given = self.read_body().validated_data
        with self.change(given["reason"]) as tx:
            row = self.as_written(suspend_value(tx, *(given[name] for name in WRITTEN)))
            return self.answer(row, status.HTTP_201_CREATED, {"Location": f"{request.path}/{row.pk}"})

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            resume(tx, self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)


@example(seconds=3600, reason="The limits are the incident")
class GlassSerializer(StrictSerializer):
    seconds = StrictIntegerField(
        write_only=True,
        min_value=LEAST_GLASS_SECONDS,
        max_value=MAX_GLASS_SECONDS,
        help_text="After how many seconds from now every limit is enforced again.",
    )
    reason = ReasonField()
    broken = serializers.SerializerMethodField(help_text="Whether every limit is a shadow now.")
    began_at = InstantField(read_only=True, allow_null=True)
    ends_at = InstantField(read_only=True, allow_null=True, help_text="Null if the glass is whole, as all others then.")
    by = serializers.CharField(read_only=True, allow_null=True)

    def get_broken(self, glass: BreakGlass) -> bool:
        return True  # a glass that is whole is not shown


WHOLE = {"broken": False, "began_at": None, "ends_at": None, "reason": "", "by": None}


class GlassView(ApiView[BreakGlass]):
    """The switch that makes every published limit a shadow in the whole fleet, with a reason and an end."""

    serializer_class = GlassSerializer
    scopes = {"retrieve": "emergency:read", "update": "emergency:write", "destroy": "emergency:write"}
    of_all_projects = ("*",)
    conditional = False

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.present()

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        given = self.read_body().validated_data
        with self.change(given["reason"]) as tx:
            break_glass(tx, end_after(timedelta(seconds=given["seconds"])))
            return self.present()

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            mend_glass(tx)
        return Response(status=status.HTTP_204_NO_CONTENT)

    def present(self) -> Response:
        glass = BreakGlass.in_force(timezone.now())
        return Response(self.get_serializer(glass).data if glass else WHOLE)
