from django.contrib import admin
from django.http import HttpRequest
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from controlplane.objects.people.scope import is_operator
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import badge, instant, link_to


@admin.register(OutboxEntry)
class OutboxAdmin(PartsPage):
    list_display = ["kind", "what", "by", "created", "published"]
    list_filter = [("kind", ChoicesDropdownFilter)]
    fields = readonly_fields = ["kind", "what", "by", "channel", "created", "published"]
    list_select_related = ["revision"]
    ordering = ["-id"]
    empty = ("Each change is listed here until it is published to the store.", "")

    @display(description="Object")
    def what(self, entry: OutboxEntry) -> str:
        model = {"policy": Policy, "project": Project}.get(entry.kind)
        row = model and model._default_manager.filter(pk=entry.object_id).first()
        return link_to(row) if row else entry.object_id[:16] or "—"

    @display(description="Created", ordering="created_at")
    def created(self, entry: OutboxEntry) -> str:
        return instant(entry.created_at)

    @display(description="Published")
    def published(self, entry: OutboxEntry) -> str:
        return link_to(entry.revision) if entry.revision else badge("pending", "warn")


def pending_badge(request: HttpRequest) -> str:
    """
    Return the number of unpublished changes as a string for the menu, or an empty string if there are none.

    Only operators see it, because it counts those of all projects.
    """
    if not is_operator(request.user):
        return ""
    return str(OutboxEntry.objects.filter(revision=None).count() or "")
