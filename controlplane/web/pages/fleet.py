from collections.abc import Iterable

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from controlplane.core.optional import HEARTBEATS
from controlplane.releases.publishing import publisher
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import DEGRADED, OK, STARTING, Instance
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.site import badge, instant
from enforcement.store_calls.instances import PROBLEMS, UNSUPPORTED_REASONS

STATES = {OK: "good", DEGRADED: "bad", STARTING: "warn"}


@admin.register(Instance)
class InstanceAdmin(PartsPage):
    optional_source = HEARTBEATS
    list_display = ["id", "host", "version", "runs", "priced", "condition", "seen", "decided"]
    list_filter = [("state", ChoicesDropdownFilter)]
    search_fields = ["id", "host"]
    fields = readonly_fields = [
        "id",
        "host",
        "pid",
        "version",
        "runs",
        "priced",
        "condition",
        "since",
        "problem",
        "started",
        "seen",
        "decided",
        "counts_nothing",
        "refuses",
    ]
    empty = ("Each process that uses the enforcement library appears here some seconds after it starts.", "")

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        self._complete(request, changelist.result_list)
        return changelist

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Instance | None:
        instance = super().get_object(request, object_id, from_field)
        if instance is not None:
            self._complete(request, [instance])
        return instance

    @staticmethod
    def _complete(request: HttpRequest, instances: Iterable[Instance]) -> None:
        """
        Add to each instance the last revision and whether it runs.

        If nobody knows, that is None, and the user is told.
        """
        last, now = publisher.last_revision(), timezone.now()
        fleet = heartbeats.fleet_now()
        if fleet.unknown:
            text = f"{fleet.unknown} Heartbeats come through it, so nobody knows which instances run."
            messages.warning(request, text)
        for instance in instances:
            instance.published = last
            instance.runs_now = None if fleet.unknown else heartbeats.is_live(instance, now)

    @display(description="Revision", ordering="revision")
    def runs(self, instance: Instance) -> str:
        behind = instance.published - instance.revision
        return badge(f"{instance.revision}, {behind} behind", "warn") if behind > 0 else str(instance.revision)

    @display(description="Prices", ordering="price_revision")
    def priced(self, instance: Instance) -> str:
        """Return the revision of the prices that the instance uses."""
        return "—" if instance.price_revision is None else str(instance.price_revision)

    @display(description="State", ordering="state")
    def condition(self, instance: Instance) -> str:
        state = state_of(instance, instance.runs_now)
        marks = {
            "every limit is a shadow": instance.glass_until,
            f"limits in code: {instance.in_code}": instance.in_code,
            "unmetered limits": instance.unmetered,
            "unsupported limits": instance.unsupported,
        }
        return format_html_join(
            " ", "{}", [(state,), *((badge(text, "warn"),) for text, found in marks.items() if found)]
        )

    @display(description="Unmetered limits")
    def counts_nothing(self, instance: Instance) -> str:
        if not instance.unmetered:
            return "none"
        return f"{', '.join(instance.unmetered)}: requests give no cost in their unit, so they admit everything."

    @display(description="Unsupported limits")
    def refuses(self, instance: Instance) -> str:
        if not instance.unsupported:
            return "none"
        rows = [f"{it['limit']} {UNSUPPORTED_REASONS.get(it['reason'], it['reason'])}" for it in instance.unsupported]
        return f"{', '.join(rows)}. This instance cannot enforce these limits, so it refuses requests under them."

    @display(description="Degraded since")
    def since(self, instance: Instance) -> str:
        return instant(instance.degraded_since) if instance.degraded_since else "—"

    @display(description="Problems")
    def problem(self, instance: Instance) -> str:
        return ", ".join(PROBLEMS.get(name, name) for name in instance.problems) or "—"

    @display(description="Started", ordering="started_at")
    def started(self, instance: Instance) -> str:
        return instant(instance.started_at)

    @display(description="Last seen", ordering="seen_at")
    def seen(self, instance: Instance) -> str:
        return instant(instance.seen_at)

    @display(description="Decisions since the start")
    def decided(self, instance: Instance) -> str:
        counts = {name: instance.decisions.get(name, 0) for name in heartbeats.COUNTERS}
        return f"{counts['allowed']:,} allowed, {counts['denied']:,} denied, {counts['fallback']:,} without the store"


def state_of(instance: Instance, live: bool | None) -> str:
    """
    Return the state of an instance as a badge.

    An instance that is not live has stopped or lost its network. With None, the store is unavailable, so nobody knows.
    """
    if live is None:
        return badge("unknown", "warn")
    if not live:
        return badge("no heartbeat", "bad")
    problems = f": {', '.join(instance.problems)}".replace("_", " ") if instance.problems else ""
    return badge(f"{instance.state}{problems}", STATES[instance.state])
