"""How far a new installation is, from an empty database to its first decision."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Max, Sum
from django.utils import timezone
from django.utils.timesince import timesince

from controlplane.changes.words.describe import amount
from controlplane.core.optional import USAGE, optional
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.fleet.heartbeats import Fleet, fleet_now
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.usage.models import UsageBatch, UsageRow
from controlplane.web.kit.site import change_url, list_url

NAMES = ("project", "policy", "token", "proxy", "request")
FIRST_REQUEST = "First request"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Step:
    """A step with a sentence on its state, and the page of what it has created."""

    name: str
    title: str
    done: bool
    detail: str
    url: str = ""
    link: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the step as JSON values, as the page polls it."""
        return asdict(self)


def first_project() -> Project | None:
    """Return the oldest project, or None if there is none."""
    return Project.objects.order_by("created_at", "pk").first()


def steps(now: datetime | None = None) -> list[Step]:
    """Return the five steps in their order, each done or not, whoever has done it and at whichever door."""
    now = now or timezone.now()
    project, policy = first_project(), Policy.objects.exclude(limits=None).order_by("created_at", "slug").first()
    token = Token.objects.live(now).order_by("created_at").first()
    return [_project(project), _policy(policy), _token(token), _proxy(fleet_now()), _request(now)]


def first_steps(now: datetime | None = None) -> dict[str, Any] | None:
    """Return how many steps are done and the title of the next one, or None after the first decision."""
    if is_complete():
        return None
    found = steps(now)
    following = next(step.title for step in found if not step.done)
    return {"done": sum(step.done for step in found), "all": len(found), "next": following}


@optional(USAGE, lambda: True)  # an installation whose usage cannot be read is hardly new
def is_complete() -> bool:
    """Return whether there was a first decision, which needs no other step to be asked."""
    return UsageRow.objects.exists()


def _project(project: Project | None) -> Step:
    if project is None:
        return Step("project", "Project", False, "The tenant that owns tokens")
    return Step("project", "Project", True, f"“{project.slug}”", change_url(project), "Edit")


def _policy(policy: Policy | None) -> Step:
    if policy is None:
        return Step("policy", "Policy", False, "Choose what comes closest. Every number can be changed later.")
    limits = ", ".join(amount(limit.as_value()) for limit in policy.limits.all()[:SHOWN])
    return Step("policy", "Policy", True, f"{policy.name}: {limits}", change_url(policy), "Edit")


def _token(token: Token | None) -> Step:
    if token is None:
        return Step("token", "Token", False, "Its secret is shown once")
    return Step("token", "Token", True, f"{token.name}, {token.prefix}…", change_url(token), "Open")


def _proxy(fleet: Fleet) -> Step:
    url, link = list_url(Instance), "See instances"
    if fleet.unknown:
        return Step("proxy", "Proxy", False, f"{fleet.unknown} Nobody knows which run.", url, link)
    if not fleet:
        return Step("proxy", "Proxy", False, "No process with the library reports yet.", url, link)
    names = [instance.pk for instance in fleet[:SHOWN]]
    more = len(fleet) - len(names)
    last = f"{more} more" if more else names.pop() if len(names) > 1 else ""
    shown = ", ".join(names) + (f" and {last}" if last else "")
    return Step("proxy", "Proxy", True, f"{shown} {'reports' if len(fleet) == 1 else 'report'}", url, link)


@optional(USAGE, lambda now: Step("request", FIRST_REQUEST, False, "Usage cannot be read now"))
def _request(now: datetime) -> Step:
    title = FIRST_REQUEST
    if not is_complete():
        return Step("request", title, False, "One line of curl, then the decision appears here")
    received = UsageBatch.objects.aggregate(at=Max("received_at"))["at"]
    counted = UsageRow.objects.filter(policy_id="", limit_name="", period="day")
    sums = counted.aggregate(allowed=Sum("allowed"), denied=Sum("denied"))
    text = f"{sums['allowed'] or 0:,} allowed and {sums['denied'] or 0:,} denied"
    ago = f", received {_ago(received, now)}" if received else ""
    return Step("request", title, True, text + ago, list_url(UsageRow), "See usage")


def _ago(at: datetime, now: datetime) -> str:
    seconds = max(0, int((now - at).total_seconds()))
    return f"{seconds} s ago" if seconds < 60 else f"{timesince(at, now, depth=1)} ago"
