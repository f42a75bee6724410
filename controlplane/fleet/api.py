"""REST: the running enforcers."""

from django.db.models import QuerySet
from django.utils import timezone
from rest_framework import serializers

from controlplane.api.fields import InstantField
from controlplane.api.serializers import ListQuery
from controlplane.api.views import ApiView, Listed
from controlplane.fleet import heartbeats
from controlplane.fleet.models import Instance


class DecisionsSerializer(serializers.Serializer):
    allowed = serializers.IntegerField(default=0)
    denied = serializers.IntegerField(default=0)
    fallback = serializers.IntegerField(default=0)


class InstanceSerializer(serializers.ModelSerializer):
    state = serializers.SerializerMethodField(help_text="lost: not heard of for 15 seconds.")
    started_at = InstantField(read_only=True, allow_null=True)
    seen_at = InstantField(read_only=True)
    degraded_since = InstantField(read_only=True, allow_null=True)
    decisions = DecisionsSerializer(read_only=True, help_text="Since it started.")

    class Meta:
        model = Instance
        fields = [
            *("id", "host", "pid", "version", "revision", "state"),
            *("started_at", "seen_at", "degraded_since", "decisions"),
        ]

    def get_state(self, instance: Instance) -> str:
        return instance.state if heartbeats.is_live(instance, timezone.now()) else "lost"


class InstanceQuery(ListQuery):
    running = serializers.BooleanField(required=False, help_text="true: only those heard of in the last 15 seconds.")


class InstanceView(Listed, ApiView):
    """The processes that enforce, each with the revision it runs."""

    serializer_class = InstanceSerializer
    ordering = ("id",)
    queries = {"list": InstanceQuery}
    scopes = {"list": "instances:read"}

    def get_queryset(self) -> QuerySet[Instance]:
        if "running" not in self.query:
            return Instance.objects.all()
        alive = Instance.objects.running(timezone.now())
        return alive if self.query["running"] else Instance.objects.exclude(pk__in=alive)
