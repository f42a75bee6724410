from collections.abc import Sequence
from dataclasses import dataclass

from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html_join
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from controlplane.core.optional import HEARTBEATS
from controlplane.releases.publishing import publisher
from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import Instance
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import Column
from controlplane.web.kit.site import badge, instant
from enforcement.store_calls.instances import DEGRADED, OK, PROBLEMS, STARTING, UNSUPPORTED_REASONS

STATES = {OK: "good", DEGRADED: "bad", STARTING: "warn"}


@dataclass(frozen=True, slots=True)
class Present:
    """The last revision, and the ids of the instances that run, or None if nobody knows."""

    revision: int
    live: set[str] | None


def present(instances: Sequence[Instance], request: HttpRequest) -> Present:
    """Return what the instances are compared with. If nobody knows whether they run, the user is told."""
    last, now = publisher.last_revision(), timezone.now()
    fleet = heartbeats.fleet_now()
    if fleet.unknown:
        text = f"{fleet.unknown} Heartbeats come through it, so nobody knows which instances run."
        messages.warning(request, text)
        return Present(last, None)
    return Present(last, {instance.pk for instance in instances if heartbeats.is_live(instance, now)})


def runs(instance: Instance, present: Present) -> str:
    behind = present.revision - instance.revision
    return badge(f"{instance.revision}, {behind} behind", "warn") if behind > 0 else str(instance.revision)


def condition(instance: Instance, present: Present) -> str:
    state = state_of(instance, None if present.live is None else instance.pk in present.live)
    marks = {
        "every limit is a shadow": instance.glass_until,
        f"limits in code: {instance.in_code}": instance.in_code,
        "unmetered limits": instance.unmetered,
        "unsupported limits": instance.unsupported,
    }
    return format_html_join(" ", "{}", [(state,), *((badge(text, "warn"),) for text, found in marks.items() if found)])


@admin.register(Instance)
class InstanceAdmin(PartsPage):
    optional_source = HEARTBEATS
    list_display = ["id", "host", "version", "runs", "priced", "condition", "seen", "decided"]
    columns = (
        Column(name="runs", title="Revision", read=present, show=runs, order="revision"),
        Column(name="condition", title="State", read=present, show=condition, order="state"),
    )
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

    @display(description="Prices", ordering="price_revision")
    def priced(self, instance: Instance) -> str:
        """Return the revision of the prices that the instance uses."""
        return "—" if instance.price_revision is None else str(instance.price_revision)

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
