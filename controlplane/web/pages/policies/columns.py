"""Columns of the list of policies that are read for all rows of the page at once. Some are fields of their page."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Max, OuterRef, QuerySet, Sum
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe

from controlplane.changes.words.describe import at_a_glance, brief, sentence
from controlplane.core.optional import USAGE, optional
from controlplane.core.tables.counting import CappedCount, as_capped
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Limit, Policy, Uses
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.models import OutboxEntry, PublishedDocument
from controlplane.traffic.usage import units
from controlplane.traffic.usage.models import DecisionCount
from controlplane.web.kit.amounts import counts_nothing
from controlplane.web.kit.page import page_of
from controlplane.web.kit.parts import Column
from controlplane.web.kit.site import instant, links, list_url
from controlplane.web.kit.tags import tag
from controlplane.web.pages.policies.limit_form import ALL, holder_of
from controlplane.web.scope.rows import Visitor
from enforcement.model.limits import InvalidLimit

NOTHING = mark_safe('<span class="sg-faint">nothing recorded</span>')
SHADOW = mark_safe(' <span class="sg-tag sg-shadow">shadow</span>')
HOUR = timedelta(hours=1)
ROWS_OF_LIMITS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class PolicyCounts:
    """Decisions by the limits of a policy. Each limit counts, so one request may count several times."""

    allowed: int
    denied: int
    would_deny: int


def seen_counts(user: Visitor) -> QuerySet[DecisionCount]:
    """Return a query of the sums of the projects that the user may see."""
    rows = DecisionCount.objects.order_by()
    return rows if is_operator(user) else rows.filter(project_id__in=projects_of(user).values("pk"))


@optional(USAGE, lambda *_: {})
def last_hour_of(policies: Iterable[Policy], user: Visitor, now: datetime) -> dict[str, PolicyCounts]:
    """Return the decisions of the last hour by the id of the policy. One of which nothing was recorded is left out."""
    rows = seen_counts(user).filter(
        policy_id__in=[policy.pk for policy in policies], period="minute", at__gt=now - HOUR
    )
    sums = rows.values_list("policy_id").annotate(Sum("allowed"), Sum("denied"), Sum("would_deny"))
    return {pk: PolicyCounts(*numbers) for pk, *numbers in sums}


def read_hours(policies: Sequence[Policy], request: HttpRequest) -> dict[str, PolicyCounts]:
    return last_hour_of(policies, request.user, timezone.now())


def last_hour(policy: Policy, hours: Mapping[str, PolicyCounts]) -> str:
    """Return a bar of what was allowed and denied, with the numbers."""
    found = hours.get(policy.pk)
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


def read_idle(policies: Sequence[Policy], request: HttpRequest) -> Collection[str]:
    """Return the units of limits in which nothing was ever charged."""
    return units.idle(limit.unit for policy in policies for limit in policy.limits.all())


def shown_limits(policy: Policy, idle: Collection[str]) -> str:
    limits = list(policy.limits.all())
    # If all are in shadow, the column with the mode says so.
    enforces = any(limit.mode != "shadow" for limit in limits)
    rows = [
        (limit.name, _glance(limit, policy), SHADOW if enforces and limit.mode == "shadow" else "", _idle(limit, idle))
        for limit in limits[:ROWS_OF_LIMITS_SHOWN]
    ]
    more = len(limits) - len(rows)
    items = format_html_join("", "<li><strong>{}</strong> {}{}{}</li>", rows)
    others = format_html("<li>and {} more</li>", more) if more > 0 else ""
    return format_html('<ul class="sg-limits sg-brief">{}{}</ul>', items, others) if rows else "none"


def limits_by_name(policy: Policy, uses: Mapping[str, Uses]) -> str:
    """Return all limits with their names, for those who may not open their forms."""
    limits = list(policy.limits.all())
    holder, idle = holder_of(policy, uses[policy.pk]), units.idle(limit.unit for limit in limits)
    rows = (
        (limit.name, _described(limit, holder), SHADOW if limit.mode == "shadow" else "", _idle(limit, idle))
        for limit in limits
    )
    items = format_html_join("", "<li><strong>{}</strong>: {}{}{}</li>", rows)
    return format_html('<ul class="sg-limits">{}</ul>', items) if items else "none"


def _described(limit: Limit, holder: str) -> str:
    """Return a sentence that says what the limit does, or why it cannot be enforced."""
    try:
        return sentence(limit.as_value(), holder)
    except InvalidLimit as exc:  # another program has written to the table
        return f"{limit.name} cannot be enforced: {exc}"


def _glance(limit: Limit, policy: Policy) -> str:
    """Return how much the limit allows, or that it cannot be enforced."""
    try:
        value = limit.as_value()
        return brief(value, ALL) if policy.is_global else at_a_glance(value)
    except InvalidLimit as exc:
        return f"cannot be enforced: {exc}"


def _idle(limit: Limit, idle: Collection[str]) -> str:
    """Return that a limit counts nothing, or an empty string."""
    return format_html(" {}", counts_nothing(limit.unit)) if limit.unit in idle else ""


def read_uses(policies: Sequence[Policy], request: HttpRequest) -> dict[str, Uses]:
    """Return the uses of policies that the user may know of."""
    return Policy.uses_of(policies, None if is_operator(request.user) else projects_of(request.user))


def holders(policy: Policy, uses: Mapping[str, Uses]) -> str:
    tokens, projects, anonymous, default = uses[policy.pk]
    found = [
        (
            f"{tokens:,} token{'' if tokens == 1 else 's'}",
            list_url(Token, f"?policy__id__exact={policy.pk}&status=all"),
        ),
        (
            f"{projects:,} project{'' if projects == 1 else 's'}",
            list_url(Project, f"?policy__id__exact={policy.pk}"),
        ),
    ]
    if anonymous:
        text = f"requests without a token of {anonymous} project{'' if anonymous == 1 else 's'}"
        found.append((text, list_url(Project, f"?anonymous_policy__id__exact={policy.pk}")))
    if default:
        text = f"new tokens of {default} project{'' if default == 1 else 's'}"
        found.append((text, list_url(Project, f"?token_policy__id__exact={policy.pk}")))
    return links(found)


def read_overrides(policies: Sequence[Policy], request: HttpRequest) -> dict[str, int]:
    """Return the number of the overrides of each policy that the user may see."""
    seen = page_of(Override).scope.narrow(Override.objects.all(), request.user)
    count = CappedCount(seen.filter(limit__policy=OuterRef("pk")))
    rows = Policy.objects.filter(pk__in=[policy.pk for policy in policies]).order_by()
    return dict(rows.annotate(found=count).values_list("pk", "found"))


def overridden(policy: Policy, counts: Mapping[str, int]) -> str:
    count = as_capped(counts.get(policy.pk, 0))
    return links([(f"{count:,}", list_url(Override, f"?q={policy.slug}/"))]) if count else "—"


@dataclass(frozen=True, slots=True)
class Publication:
    """Which policies wait to be published, and the revision that has last published each, by "policy:" and its id."""

    waiting: set[str]
    revisions: dict[str, int]


def read_publication(policies: Sequence[Policy], request: HttpRequest) -> Publication:
    return Publication(waiting_of(policies), revisions_of(policies))


def published(policy: Policy, found: Publication) -> str:
    """Return the revision that has published the policy as it is, or that it waits, and when it was changed."""
    shown: str
    if policy.pk in found.waiting:
        shown = tag("waiting", "schedule", "warn", "It is published when the store is available.")
    else:
        revision = found.revisions.get(f"policy:{policy.pk}")
        shown = f"revision {revision:,}" if revision else "yes"
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


LIMITS = Column(name="limits_described", title="Limits", read=read_idle, show=shown_limits)
LIMITS_BY_NAME = Column(name="limits_by_name", title="Limits", read=read_uses, show=limits_by_name)
LAST_HOUR = Column(name="last_hour", title="Last hour", read=read_hours, show=last_hour)
HOLDERS = Column(name="holders", title="Used by", read=read_uses, show=holders)
OVERRIDDEN = Column(name="overridden", title="Overrides", read=read_overrides, show=overridden)
PUBLISHED = Column(name="published", title="Published", read=read_publication, show=published, order="updated_at")
