"""Columns of the list of policies, and its filters that need usage."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Exists, Max, OuterRef, QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from unfold.contrib.filters.admin import DropdownFilter
from unfold.decorators import display

from controlplane.core.optional import USAGE, optional, read_by
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Policy
from controlplane.releases.publishing.models import OutboxEntry, PublishedDocument
from controlplane.traffic.usage import units
from controlplane.traffic.usage.models import DecisionCount
from controlplane.web.kit.site import instant
from controlplane.web.kit.tags import tag

NOTHING = mark_safe('<span class="sg-faint">nothing recorded</span>')
HOUR, LATELY, MONTH = timedelta(hours=1), timedelta(minutes=5), timedelta(days=30)


@dataclass(frozen=True, slots=True)
class PolicyCounts:
    """Decisions by the limits of a policy. Each limit counts, so one request may count several times."""

    allowed: int
    denied: int
    would_deny: int


def seen_counts(user: Any) -> QuerySet[DecisionCount]:
    """Return a query of the sums of the projects that the user may see."""
    rows = DecisionCount.objects.order_by()
    return rows if is_operator(user) else rows.filter(project_id__in=projects_of(user).values("pk"))


@optional(USAGE, lambda *_: {})
def last_hour_of(policies: Iterable[Policy], user: Any, now: datetime) -> dict[str, PolicyCounts]:
    """Return the decisions of the last hour by the id of the policy. One of which nothing was recorded is left out."""
    rows = seen_counts(user).filter(
        policy_id__in=[policy.pk for policy in policies], period="minute", at__gt=now - HOUR
    )
    sums = rows.values_list("policy_id").annotate(Sum("allowed"), Sum("denied"), Sum("would_deny"))
    return {pk: PolicyCounts(*numbers) for pk, *numbers in sums}


class TrafficFilter(DropdownFilter):
    """A filter by what the limits of a policy have decided, in the projects that the user may see."""

    title = "traffic"
    parameter_name = "traffic"
    DENYING, QUIET, NEVER = "denying", "quiet", "never"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            (self.DENYING, "denying now (in the last 5 minutes)"),
            (self.QUIET, "never matched in 30 days"),
            (self.NEVER, "never matched (as long as usage is kept, which is two years)"),
        ]

    def queryset(self, request: HttpRequest, rows: QuerySet[Policy]) -> QuerySet[Policy]:
        if self.value():
            read_by(request).add(USAGE)
        now, counts = timezone.now(), seen_counts(request.user)
        if self.value() == self.DENYING:
            denials = counts.filter(period="minute", at__gt=now - LATELY, denied__gt=0)
            return rows.filter(pk__in=denials.values("policy_id"))
        days = counts.filter(policy_id=OuterRef("pk"), period="day")
        if self.value() == self.QUIET:
            return rows.exclude(Exists(days.filter(at__gt=now - MONTH)))
        if self.value() == self.NEVER:
            return rows.exclude(Exists(days))
        return rows.none() if self.value() else rows


class ManagedFilter(DropdownFilter):
    """A filter by who manages a row, files or people and programs."""

    title = "managed by"
    parameter_name = "managed"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("files", "files"), ("hand", "the admin and REST")]

    def queryset(self, request: HttpRequest, rows: QuerySet) -> QuerySet:
        if self.value() == "files":
            return rows.exclude(managed_by="")
        if self.value() == "hand":
            return rows.filter(managed_by="")
        return rows.none() if self.value() else rows


class PolicyColumns:
    """A mixin for the list of policies, with columns that are read for all rows of the page at once."""

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        changelist = super().get_changelist_instance(request)
        policies = changelist.result_list = list(changelist.result_list)
        hours = last_hour_of(policies, request.user, timezone.now())
        waiting, revisions = waiting_of(policies), revisions_of(policies)
        idle = units.idle(limit.unit for policy in policies for limit in policy.limits.all())
        for policy in policies:
            policy.last_hour, policy.waits = hours.get(policy.pk), policy.pk in waiting
            policy.idle_units = idle
            policy.published_in = revisions.get(f"policy:{policy.pk}")
        return changelist

    @display(description="Mode")
    def mode(self, policy: Policy) -> SafeString | str:
        """Return whether the limits are enforced."""
        modes = {limit.mode for limit in policy.limits.all()}
        if not modes:
            return tag("no limits", "remove")
        if modes == {"shadow"}:
            return tag("in shadow", "visibility", "shadow", "It denies nothing, and counts what it would deny.")
        return tag("part in shadow", "rule") if "shadow" in modes else tag("enforced", "shield", "good")

    @display(description="Last hour")
    def last_hour(self, policy: Policy) -> SafeString | str:
        """Return a bar of what was allowed and denied, with the numbers."""
        found = policy.last_hour
        if found is None:
            return NOTHING
        whole = found.allowed + found.denied
        # A denied share can be seen, however small it is.
        share = max(3, round(100 * found.denied / whole)) if found.denied else 0
        parts = [f"{found.allowed:,} allowed", f"{found.denied:,} denied"]
        if found.would_deny:
            parts.append(f"{found.would_deny:,} would deny")
        html = (
            '<span class="sg-hour" title="Each limit counts"><svg class="sg-bar" aria-hidden="true">'
            '<rect width="{}%" height="6"/><rect class="sg-d" x="{}%" width="{}%" height="6"/></svg>{}</span>'
        )
        return format_html(html, 100 - share, 100 - share, share, ", ".join(parts))

    @display(description="Managed by")
    def managed(self, policy: Policy) -> SafeString | str:
        if not policy.managed_by:
            return "by hand"
        return tag("from files", "description", title=policy.managed_by)

    @display(description="Published", ordering="updated_at")
    def published(self, policy: Policy) -> SafeString | str:
        """Return the revision that has published the policy as it is, or that it waits, and when it was changed."""
        if policy.waits:
            shown = tag("waiting", "schedule", "warn", "It is published when the store is available.")
        else:
            shown = f"revision {policy.published_in:,}" if policy.published_in else "yes"
        changed = format_html('<span class="sg-faint sg-block">changed {}</span>', instant(policy.updated_at))
        return format_html("{} {}", shown, changed)


def waiting_of(policies: Iterable[Policy]) -> set[str]:
    """Return the ids of those of the policies that were changed and are not published yet."""
    keys = [policy.pk for policy in policies]
    rows = OutboxEntry.objects.filter(revision=None, kind="policy", object_id__in=keys).order_by()
    return set(rows.values_list("object_id", flat=True))


def revisions_of(policies: Iterable[Policy]) -> dict[str, int]:
    """Return the revision that has last published each policy, by "policy:" and its id, if it is kept."""
    names = [f"policy:{policy.pk}" for policy in policies]
    rows = PublishedDocument.objects.filter(name__in=names).order_by()
    return dict(rows.values_list("name").annotate(Max("revision")))
