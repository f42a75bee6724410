"""The REST resource of drafts, which are made and published in the admin."""

from django.db.models import QuerySet
from rest_framework import serializers

from controlplane.releases.drafts.models import PolicyDraft
from controlplane.web.restkit.fields import InstantField, ReferenceField
from controlplane.web.restkit.serializers import ListQuery
from controlplane.web.restkit.views import Listed, Retrieved

DRAFT_ID = "drf_[0-9a-z]{1,36}"
STATES = [name for name, _ in PolicyDraft.STATES]


class DraftSerializer(serializers.ModelSerializer):
    policy: serializers.SlugRelatedField = serializers.SlugRelatedField(
        "slug", read_only=True, allow_null=True, help_text="Slug of the policy that it changes. Null for a new one."
    )
    project: serializers.SlugRelatedField = serializers.SlugRelatedField(
        "slug", read_only=True, allow_null=True, help_text="Slug of the owning project. Null if all projects share it."
    )
    state = serializers.ChoiceField(STATES, read_only=True)
    is_behind = serializers.BooleanField(read_only=True, help_text="Whether the policy was changed since it was saved.")
    name = serializers.CharField(source="content.name", read_only=True)
    description = serializers.CharField(source="content.description", read_only=True)
    metering = serializers.JSONField(source="content.metering", read_only=True)
    limits = serializers.JSONField(
        source="content.limits", read_only=True, help_text="All limits, in order, without fields that have the default."
    )
    created_at = InstantField(read_only=True)
    updated_at = InstantField(read_only=True)

    class Meta:
        model = PolicyDraft
        fields = [
            *("id", "policy", "project", "state", "is_behind", "slug", "name", "description", "limits", "metering"),
            *("saved_by", "created_at", "updated_at"),
        ]


class DraftQuery(ListQuery):
    state = serializers.ChoiceField(STATES, required=False)
    project = ReferenceField("projects", required=False, help_text="Slug of the owning project.")


class DraftView(Listed[PolicyDraft], Retrieved[PolicyDraft]):
    """Policies that are prepared and not published, the latest first. No proxy knows them."""

    serializer_class = DraftSerializer
    lookup_field = "id"
    lookup_value_regex = DRAFT_ID
    ordering = ("-id",)
    conditional = False
    queries = {"list": DraftQuery}
    scopes = dict.fromkeys(("list", "retrieve"), "policies:read")

    def get_queryset(self) -> QuerySet[PolicyDraft]:
        """Return the drafts of the projects of the key. Those of shared policies are for keys of all projects."""
        chosen = {name: self.query[name] for name in ("state", "project") if name in self.query}
        rows = PolicyDraft.objects.filter(**chosen).select_related("policy", "project")
        return self.access.within(rows, "project")
