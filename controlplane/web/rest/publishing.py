"""The REST resource of revisions, with the instances that run them and the roll-back."""

from typing import Any

from django.db.models import QuerySet
from django.utils.functional import cached_property
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.releases.publishing import rollback
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import Instance
from controlplane.web.restkit.fields import InstantField, ReasonField
from controlplane.web.restkit.ordering import OrderField
from controlplane.web.restkit.serializers import ListQuery, StrictSerializer
from controlplane.web.restkit.views import Listed
from enforcement.model.sizes import MAX_NUMBER


class RevisionSerializer(serializers.ModelSerializer):
    revision = serializers.IntegerField(source="number", read_only=True)
    epoch = serializers.IntegerField(
        read_only=True, help_text="All revisions of a later epoch replace those of an earlier one."
    )
    at = InstantField(read_only=True)
    published_at = InstantField(read_only=True, allow_null=True)
    acknowledged = serializers.SerializerMethodField(help_text="Number of instances with this or a newer revision.")
    instances = serializers.SerializerMethodField(help_text="Number of running instances.")
    lag_ms = serializers.IntegerField(
        read_only=True,
        allow_null=True,
        help_text="After how many milliseconds the last of the instances that ran then had it. Null if unknown.",
    )

    class Meta:
        model = Revision
        fields = [
            *("revision", "epoch", "at", "by", "channel", "note", "published_at", "acknowledged", "instances"),
            "lag_ms",
        ]

    def get_acknowledged(self, revision: Revision) -> int:
        return heartbeats.acknowledged(revision.number, revision.epoch, self.context["view"].fleet)[0]

    def get_instances(self, revision: Revision) -> int:
        return len(self.context["view"].fleet)


class RevisionDetailSerializer(RevisionSerializer):
    changes = serializers.DictField(read_only=True, help_text="The published documents. A deleted one is null.")
    behind = serializers.SerializerMethodField(help_text="Ids of the running instances with an older revision.")

    class Meta(RevisionSerializer.Meta):
        fields = [*RevisionSerializer.Meta.fields, "behind", "changes"]

    def get_behind(self, revision: Revision) -> list[str]:
        fleet = self.context["view"].fleet
        return [instance.pk for instance in fleet if not instance.runs(revision.number, revision.epoch)]


class RollbackSerializer(StrictSerializer):
    reason = ReasonField()


class RolledBackSerializer(serializers.Serializer):
    rolled_back_to = serializers.IntegerField()
    revision = serializers.IntegerField(
        allow_null=True, help_text="The new revision. Null if it is pending, or if nothing had to be changed."
    )


class RevisionQuery(ListQuery):
    channel = serializers.CharField(required=False, max_length=10, help_text="Of its author, for example api.")
    kind = serializers.ChoiceField(Revision.KINDS, required=False, help_text="What it changed.")
    since = InstantField(required=False)
    until = InstantField(required=False)
    above = serializers.IntegerField(
        required=False, min_value=0, max_value=MAX_NUMBER, help_text="Only revisions after this number."
    )
    order = OrderField("revision", usual="-revision")


class RevisionView(Listed[Revision]):
    """Published states, newest first. A roll-back is a new revision."""

    serializer_class = RevisionSerializer
    lookup_field = "number"
    lookup_value_regex = "[0-9]{1,18}"
    ordering = ("-number",)
    orders = {"revision": ("number",)}
    queries = {"list": RevisionQuery}
    FILTERS = {"channel": "channel", "kind": "kind", "since": "at__gte", "until": "at__lt", "above": "number__gt"}
    conditional = False
    of_all_projects = ("*",)
    scopes = {"list": "revisions:read", "retrieve": "revisions:read", "rollback": "revisions:write"}

    def get_queryset(self) -> QuerySet[Revision]:
        chosen = {lookup: self.query[name] for name, lookup in self.FILTERS.items() if name in self.query}
        return Revision.objects.defer("changes").filter(**chosen) if self.action == "list" else Revision.objects.all()

    @cached_property
    def fleet(self) -> list[Instance]:
        """The running instances, read once for each request. If the store is unavailable, the last known ones."""
        return heartbeats.fleet_now()

    @extend_schema(responses=RevisionDetailSerializer)
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response(RevisionDetailSerializer(self.get_object(), context=self.get_serializer_context()).data)

    @extend_schema(request=RollbackSerializer, responses=RolledBackSerializer)
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Restore the policies, their limits, the policies of projects, and the global policy of this revision.

        Tokens, overrides and prices do not change. The header Sluicegate-Revision names the new revision.
        """
        serializer = RollbackSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        revision = self.get_object()
        with self.change(serializer.validated_data["reason"]) as tx:
            rollback.rollback(tx, revision.number)
        return Response({"rolled_back_to": revision.number, "revision": tx.revision})
