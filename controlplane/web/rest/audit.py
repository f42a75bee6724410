"""The REST resource of the audit."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from controlplane.changes.audit.export import COLUMNS, records
from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.audit.searching import AUDIT_SEARCH
from controlplane.web.restkit.exports import Exported, ExportQuery
from controlplane.web.restkit.fields import InstantField, ProjectField
from controlplane.web.restkit.ordering import OrderField, SearchField, found_by
from controlplane.web.restkit.serializers import ListQuery
from controlplane.web.restkit.views import Listed


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
    object_type = serializers.CharField(required=False, max_length=32, help_text="For example policy.")
    channel = serializers.ChoiceField([name for name, _ in AuditEntry.CHANNELS], required=False)
    project = ProjectField(help_text="Slug or id of the project that is concerned.")
    request_id = serializers.CharField(required=False, help_text="The `X-Request-Id` of the request that made it.")
    since = InstantField(required=False)
    until = InstantField(required=False)
    search = SearchField("actor, action, object and reason, or the id of an object or request")
    order = OrderField("at", usual="-at")


class AuditExportQuery(ExportQuery, AuditQuery):
    pass


class AuditView(Exported[AuditEntry], Listed[AuditEntry]):
    """Changes with their author, time and reason, newest first."""

    serializer_class = AuditSerializer
    ordering = ("-id",)
    orders = {"at": ("id",)}  # ids rise with the time
    file_name = "audit"
    queries = {"list": AuditQuery, "export": AuditExportQuery}
    scopes = {"list": "audit:read", "export": "audit:read"}
    of_all_projects = ("*",)

    FILTERS = {
        "actor": "actor",
        "action": "action",
        "object": "object_id",
        "object_type": "object_type",
        "channel": "channel",
        "project": "project",
        "request_id": "request_id",
        "since": "at__gte",
        "until": "at__lt",
    }

    def get_queryset(self) -> QuerySet[AuditEntry]:
        chosen = {lookup: self.query[name] for name, lookup in self.FILTERS.items() if name in self.query}
        return found_by(AUDIT_SEARCH, AuditEntry.objects.filter(**chosen), self.query)

    def columns(self) -> Sequence[str]:
        return COLUMNS

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each entry with its place in the chain, as the export of the admin does."""
        return records(self.get_queryset().order_by(*self.list_order()))
