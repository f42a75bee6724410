"""What requests of the last days had, as far as usage and the sample of denials know."""

from collections import Counter
from datetime import datetime, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase

from django.db.models import QuerySet

from controlplane.policies.models import Policy
from controlplane.projects.models import Project
from controlplane.usage.models import DeniedRequest, UsageRow

BACK = timedelta(days=7)
MOST_READ = 1_000
MOST_NAMED = 3


def never_matched(policy: Policy, projects: QuerySet[Project], now: datetime) -> dict[str, datetime]:
    """
    Return the names of the limits of a saved policy that no request has fallen under, with the time since when.

    That is 7 days ago, or the last change of the policy. It is empty if no request of the policy was counted since
    then, because nobody knows which requests will come.
    """
    since = max(now - BACK, policy.updated_at)
    rows = UsageRow.objects.filter(period="hour", at__gt=since, at__lte=now, project_id__in=projects.values("pk"))
    of_policy = rows.filter(policy_id=policy.pk)
    silent = [limit.name for limit in policy.limits.all() if not of_policy.filter(limit_name=limit.name).exists()]
    return dict.fromkeys(silent, since) if silent and of_policy.exists() else {}


def paths_of(projects: QuerySet[Project], now: datetime) -> Counter[str]:
    """Return how often each path was in the sample of the projects' denials in the last 7 days."""
    rows = DeniedRequest.objects.filter(project_id__in=projects.values("pk"), at__gt=now - BACK)
    found = rows.order_by("-at").values_list("attributes", flat=True)[:MOST_READ]
    return Counter(attributes["path"] for attributes in found if attributes.get("path"))


def similar(pattern: str, seen: Counter[str]) -> list[str]:
    """Return the seen paths that look like *pattern*, or an empty list if one of them fits it."""
    if any(fnmatchcase(path, pattern) for path in seen):
        return []
    return get_close_matches(pattern.rstrip("*"), seen, n=MOST_NAMED, cutoff=0.6)
