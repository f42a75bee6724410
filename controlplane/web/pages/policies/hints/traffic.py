"""The attributes and units in requests of the last days, as far as usage and the sample of denials know."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from django.db.models import QuerySet

from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from enforcement.model.matching import Match
from enforcement.model.spelling import closest

BACK = timedelta(days=7)
MOST_READ = 1_000
MOST_NAMED = 3
# Ends a value of which a denial keeps the beginning only.
CUT = "\N{HORIZONTAL ELLIPSIS}"


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


class Sample:
    """
    The attributes of sampled denials.

    Nothing else tells what requests have: those that pass are counted, and their attributes are not recorded. A denial
    has those that its limit looks at.
    """

    def __init__(self, found: Sequence[Mapping[str, str]]) -> None:
        self._found = found

    def values(self, name: str) -> Counter[str]:
        """Return how often each value of an attribute was in the sample."""
        return Counter(attributes[name] for attributes in self._found if attributes.get(name))


def sampled(projects: QuerySet[Project], now: datetime) -> Sample:
    """Return the sample of the last 7 days, of at most MOST_READ denials."""
    rows = DeniedRequest.objects.filter(project_id__in=projects.values("pk"), at__gt=now - BACK)
    return Sample(list(rows.order_by("-at").values_list("attributes", flat=True)[:MOST_READ]))


def fits(rule: Match, name: str, seen: Counter[str]) -> bool:
    """Return whether a seen value of an attribute fits the rule about it, or may fit as only its beginning is kept."""
    test = rule.compile()
    return test is None or any(value.endswith(CUT) or test({name: value}) for value in seen)


def similar(pattern: str, seen: Counter[str]) -> list[str]:
    """Return the seen values that look like *pattern*."""
    return closest(pattern.rstrip("*"), seen, most=MOST_NAMED)
