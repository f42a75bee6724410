"""The REST resources of alert rules and of their events."""

from typing import Any

from django.core.exceptions import ValidationError as InvalidModel
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ValidationError

from controlplane.operations.alerts.models import EVERY_LIMIT, MOST_THRESHOLDS, AlertEvent, AlertRule
from controlplane.operations.alerts.rule_kinds import KINDS, LONGEST
from controlplane.operations.webhooks.models import Destination
from controlplane.web.restkit.fields import InstantField, ReferenceField
from controlplane.web.restkit.problems import model_errors
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import CleanModelSerializer, ListQuery, OwnProject
from controlplane.web.restkit.views import Listed, Resource, Retrieved
from enforcement.model.sizes import MAX_NUMBER

RULE_ID = "alr_[0-9a-z]{1,36}"
EVENT_ID = "evt_[0-9a-z]{1,36}"
PER_CENT = {"type": "integer", "minimum": 1, "maximum": 100}


@extend_schema_field({"type": "array", "maxItems": MOST_THRESHOLDS, "uniqueItems": True, "items": PER_CENT})
class ThresholdsField(serializers.JSONField):
    """Rising numbers of per cent. The model knows the rules."""


@extend_schema_field({"type": "array", "maxItems": 100, "uniqueItems": True, "items": {"type": "string"}})
class WebhooksField(serializers.Field):
    """The ids of the webhooks that are told, which the key must see."""

    default_error_messages = {
        "invalid": "Must be a list of at most 100 ids of webhooks.",
        "does_not_exist": "There is no webhook {value!r}.",
    }

    def to_internal_value(self, data: Any) -> list[Destination]:
        if not isinstance(data, list) or len(data) > 100 or not all(isinstance(one, str) for one in data):
            self.fail("invalid")
        found = self.context["access"].within(Destination.objects.all(), "project").in_bulk(data)
        for one in data:
            if one not in found:
                self.fail("does_not_exist", value=one)
        return [found[fromkey] for fromkey in dict.fromkeys(data)]

    def to_representation(self, value: Any) -> list[str]:
        return sorted(value.values_list("pk", flat=True))


@example(name="80 %", project="chat", kind="usage", thresholds=[80, 100], webhooks=[])
class AlertRuleSerializer(OwnProject, CleanModelSerializer[AlertRule]):
    project = ReferenceField(
        "projects",
        allow_null=True,
        help_text="Slug of the project. Null: all projects, or the installation, for keys of all projects.",
    )
    limit = serializers.CharField(
        default=EVERY_LIMIT, max_length=128, help_text="policy-slug/limit-name, or * for each."
    )
    thresholds = ThresholdsField(
        required=False, help_text="Per cent, for `usage`, `denials`, `would_deny` and `spend`, which have usual ones."
    )
    webhooks = WebhooksField(source="destinations", default=list, help_text="Ids of webhooks of the same project.")

    class Meta:
        model = AlertRule
        fields = [
            *("id", "name", "project", "kind", "limit", "thresholds", "within_seconds", "amount"),
            *("cool_down_seconds", "recovery", "active", "webhooks", "created_at"),
        ]
        read_only_fields = ["created_at"]
        extra_kwargs = {
            "within_seconds": {
                "help_text": f"How far to look ahead or back. From 60 to {LONGEST}.",
                "default": None,
                "min_value": 60,
                "max_value": LONGEST,
            },
            # Their rules are named again, since the document would not have those of the model.
            "amount": {
                "help_text": "For `spend`, in millionths of the currency.",
                "default": None,
                "min_value": 1,
                "max_value": MAX_NUMBER,
            },
            "cool_down_seconds": {"help_text": f"At most {LONGEST}.", "default": 3_600, "max_value": LONGEST},
        }

    def candidate(self, attrs: dict[str, Any]) -> AlertRule:
        return super().candidate({name: value for name, value in attrs.items() if name != "destinations"})

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "thresholds" not in attrs and not (self.instance and self.instance.thresholds):
            attrs = {**attrs, "thresholds": list(KINDS[self.candidate(attrs).kind].thresholds)}
        super().validate(attrs)
        rule = self.candidate(attrs)
        rule.clean()  # which sets what the kind does not have
        destinations = attrs.get("destinations")
        try:
            rule.check_destinations(list(rule.destinations.all()) if destinations is None else destinations)
        except InvalidModel as exc:
            raise ValidationError(self._by_name(model_errors(exc))) from exc
        present = {name: getattr(rule, name) for name in ("limit", "thresholds", "within_seconds", "amount")}
        return {**attrs, **present}


class AlertRuleQuery(ListQuery):
    project = ReferenceField("projects", required=False, help_text="Slug of the project.")
    kind = serializers.ChoiceField(list(KINDS), required=False)


class AlertRuleView(Resource[AlertRule]):
    """Rules of alerts, with the webhooks that they notify."""

    serializer_class = AlertRuleSerializer
    lookup_field = "id"
    lookup_value_regex = RULE_ID
    ordering = ("-id",)
    queries = {"list": AlertRuleQuery}
    scopes = {
        **dict.fromkeys(("list", "retrieve"), "alerts:read"),
        **dict.fromkeys(("create", "partial_update", "destroy"), "alerts:write"),
    }

    def get_queryset(self) -> QuerySet[AlertRule]:
        chosen = {name: self.query[name] for name in ("project", "kind") if name in self.query}
        return self.access.within(AlertRule.objects.all(), "project").select_related("project").filter(**chosen)

    def save_changed(self, tx: Any, serializer: Any, before: dict[str, Any]) -> None:
        """Save the row with an audit entry if it then differs from *before*."""
        saved = serializer.save()
        if saved.as_record() != before:
            tx.updated(saved, before)


class AlertEventSerializer(serializers.ModelSerializer):
    rule = serializers.CharField(source="rule_id", read_only=True, help_text="Id of the rule.")
    project: serializers.SlugRelatedField = serializers.SlugRelatedField("slug", read_only=True, allow_null=True)
    kind = serializers.ChoiceField(list(KINDS), read_only=True)
    state = serializers.ChoiceField([name for name, _ in AlertEvent.STATES], read_only=True)

    at = InstantField(read_only=True)
    resolved_at = InstantField(read_only=True, allow_null=True, help_text="When it was resolved. Null: it is firing.")

    class Meta:
        model = AlertEvent
        fields = ["id", "rule", "project", "kind", "state", "level", "title", "data", "at", "resolved_at"]
        extra_kwargs = {"data": {"read_only": True, "help_text": "Facts by name, which depend on the kind."}}


class AlertEventQuery(ListQuery):
    rule = serializers.CharField(required=False, max_length=40, help_text="Id of the rule.")
    project = ReferenceField("projects", required=False, help_text="Slug of the project that it is about.")
    state = serializers.ChoiceField([name for name, _ in AlertEvent.STATES], required=False)


class AlertEventView(Listed[AlertEvent], Retrieved[AlertEvent]):
    """Events of the rules, the latest first."""

    serializer_class = AlertEventSerializer
    lookup_field = "id"
    lookup_value_regex = EVENT_ID
    ordering = ("-id",)
    conditional = False
    queries = {"list": AlertEventQuery}
    scopes = dict.fromkeys(("list", "retrieve"), "alerts:read")

    def get_queryset(self) -> QuerySet[AlertEvent]:
        """Return the events of the rules that the key may see."""
        chosen = {name: self.query[name] for name in ("rule", "project", "state") if name in self.query}
        rows = self.access.within(AlertEvent.objects.all(), "rule__project")
        return rows.filter(**chosen).select_related("project")
