"""The filters of the list of policies."""

from datetime import timedelta

from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from controlplane.core.optional import USAGE, read_by
from controlplane.objects.policies.models import Limit, Policy
from controlplane.web.kit.parts import Filter
from controlplane.web.pages.policies.columns import seen_counts

LATELY, MONTH = timedelta(minutes=5), timedelta(days=30)


DENYING, QUIET, NEVER = "denying", "quiet", "never"


def with_traffic(rows: QuerySet[Policy], traffic: str, request: HttpRequest) -> QuerySet[Policy]:
    """Return the policies of which the limits have decided so, in the projects that the user may see."""
    read_by(request).add(USAGE)
    now, counts = timezone.now(), seen_counts(request.user)
    if traffic == DENYING:
        denials = counts.filter(period="minute", at__gt=now - LATELY, denied__gt=0)
        return rows.filter(pk__in=denials.values("policy_id"))
    days = counts.filter(policy_id=OuterRef("pk"), period="day")
    if traffic == QUIET:
        return rows.exclude(Exists(days.filter(at__gt=now - MONTH)))
    return rows.exclude(Exists(days)) if traffic == NEVER else rows.none()


TRAFFIC_FILTER = Filter(
    name="traffic",
    title="traffic",
    choices=[
        (DENYING, "denying now (in the last 5 minutes)"),
        (QUIET, "never matched in 30 days"),
        (NEVER, "never matched (as long as usage is kept, which is two years)"),
    ],
    narrow=with_traffic,
)


def managed_by(rows: QuerySet[Policy], manager: str, request: HttpRequest) -> QuerySet[Policy]:
    if manager == "files":
        return rows.exclude(managed_by="")
    return rows.filter(managed_by="") if manager == "hand" else rows.none()


MANAGED_FILTER = Filter(
    name="managed",
    title="managed by",
    choices=[("files", "files"), ("hand", "the admin and REST")],
    narrow=managed_by,
)


def with_mode(rows: QuerySet[Policy], mode: str, request: HttpRequest) -> QuerySet[Policy]:
    """Return the policies of which a limit has this mode."""
    return rows.filter(Exists(Limit.objects.filter(policy=OuterRef("pk"), mode=mode)))


MODE_FILTER = Filter(
    name="mode",
    title="mode of a limit",
    choices=[("shadow", "in shadow"), ("enforce", "enforced")],
    narrow=with_mode,
)
