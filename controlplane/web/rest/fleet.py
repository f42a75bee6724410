"""The REST resource of instances."""

from django.db.models import QuerySet
from django.utils import timezone
from rest_framework import serializers

from controlplane.core.optional import HEARTBEATS
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import HEARTBEAT_LIFETIME, Instance
from controlplane.web.restkit.fields import InstantField
from controlplane.web.restkit.serializers import ListQuery
from controlplane.web.restkit.views import Listed
from enforcement.settings import ENFORCE, IN_CODE
from enforcement.store_calls.instances import PROBLEMS, UNSUPPORTED_REASONS

LIFETIME = f"{HEARTBEAT_LIFETIME.seconds} seconds"


class DecisionsSerializer(serializers.Serializer):
    allowed = serializers.IntegerField(default=0)
    denied = serializers.IntegerField(default=0)
    fallback = serializers.IntegerField(default=0)


class UnsupportedSerializer(serializers.Serializer):
    limit = serializers.CharField(help_text="policy/limit")
    reason = serializers.CharField(
        help_text="; ".join(f"{name}: the limit {text}" for name, text in UNSUPPORTED_REASONS.items()) + "."
    )


class InCodeField(serializers.ChoiceField):
    """A field for the mode of limits in code. A heartbeat without it means that they hold."""

    def to_representation(self, value: str) -> str:
        return value or ENFORCE


class InstanceSerializer(serializers.ModelSerializer):
    state = serializers.SerializerMethodField(help_text=f"An instance without a heartbeat for {LIFETIME} is lost.")
    started_at = InstantField(read_only=True, allow_null=True)
    seen_at = InstantField(read_only=True)
    degraded_since = InstantField(read_only=True, allow_null=True)
    problems = serializers.ListField(
        child=serializers.ChoiceField(list(PROBLEMS)),
        read_only=True,
        help_text="What is wrong with a store that the instance reaches: "
        + "; ".join(f"{name}: {text}" for name, text in PROBLEMS.items())
        + ".",
    )
    price_revision = serializers.IntegerField(
        read_only=True, allow_null=True, help_text="The revision of the prices in use. Null if it uses no prices."
    )
    in_code = InCodeField(
        list(IN_CODE),
        read_only=True,
        help_text="What happens to limits in code: they hold (enforce), count without denying (shadow), or are off.",
    )
    decisions = DecisionsSerializer(read_only=True, help_text="Decisions since the start of the process.")
    unmetered = serializers.ListField(
        child=serializers.CharField(),
        read_only=True,
        help_text="Limits (policy/limit) that count nothing here, because requests give no cost in their unit.",
    )
    unsupported = UnsupportedSerializer(
        many=True,
        read_only=True,
        help_text="Limits that this instance cannot enforce, so that it refuses requests under them.",
    )

    class Meta:
        model = Instance
        fields = [
            *("id", "host", "pid", "version", "revision", "price_revision", "state"),
            *("started_at", "seen_at", "degraded_since", "in_code", "problems", "decisions", "unmetered"),
            "unsupported",
        ]

    def get_state(self, instance: Instance) -> str:
        return instance.state if heartbeats.is_live(instance, timezone.now()) else "lost"


class InstanceQuery(ListQuery):
    running = serializers.BooleanField(
        required=False, help_text=f"If true, only instances with a heartbeat in the last {LIFETIME}."
    )


class InstanceView(Listed[Instance]):
    """The processes that enforce limits, each with the revision that it runs."""

    optional_source = HEARTBEATS
    serializer_class = InstanceSerializer
    ordering = ("id",)
    queries = {"list": InstanceQuery}
    scopes = {"list": "instances:read"}
    # An instance serves every project, so its host, process and version are none of the business of one of them.
    of_all_projects = ("*",)

    def get_queryset(self) -> QuerySet[Instance]:
        if "running" not in self.query:
            return Instance.objects.all()
        alive = Instance.objects.running(timezone.now())
        return alive if self.query["running"] else Instance.objects.exclude(pk__in=alive)
