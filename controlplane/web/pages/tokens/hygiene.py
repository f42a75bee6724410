"""The tokens that need a hand, as cards above their list and as a filter of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from controlplane.core.tables.counting import capped
from controlplane.objects.people.scope import is_operator, projects_of
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.web.kit.filters import ENDING, EndsFilter
from controlplane.web.kit.parts import Filter, ListPanel

UNUSED_FOR = timedelta(days=90)
# Each visit of the list counts, and somebody who has more tokens to look at need not know how many more.
MOST_COUNTED = 1_000
FOREVER, UNUSED, UNLIMITED = "forever", "unused", "unlimited"
TITLES = {FOREVER: "Never expire", UNUSED: "Not used for 90 days", UNLIMITED: "No limit applies"}
PROJECT = "project__id__exact"


def unused(tokens: QuerySet[Token], now: datetime) -> QuerySet[Token]:
    """Return those of the tokens that nobody has used for 90 days, and that are at least so old."""
    since = now - UNUSED_FOR
    return tokens.filter(Q(last_used_on__lt=since.date()) | Q(last_used_on=None, created_at__lte=since))


def unlimited(tokens: QuerySet[Token]) -> QuerySet[Token]:
    """Return those of the tokens to which no limit applies, neither of their policy nor of what they share."""
    empty = Policy.objects.exclude(Exists(Limit.objects.filter(policy=OuterRef("pk")))).order_by()
    if Policy.objects.filter(is_global=True).exclude(pk__in=empty.values("pk")).exists():
        return tokens.none()
    none = list(empty.values_list("pk", flat=True))
    # By their ids, of which the index of tokens then has the number.
    projects = Project.objects.filter(Q(policy=None) | Q(policy__in=none)).order_by()
    free = list(projects.values_list("pk", flat=True))
    return tokens.filter(Q(policy=None) | Q(policy__in=none), project__in=free)


def found_by(name: str, tokens: QuerySet[Token], now: datetime) -> QuerySet[Token]:
    """Return the tokens that a choice of the filter finds: all without a choice, and none for an unknown one."""
    live = tokens.live(now)
    if name == FOREVER:
        return live.filter(expires_at=None)
    if name == UNUSED:
        return unused(live, now)
    if name == UNLIMITED:
        return unlimited(live)
    return tokens.none() if name else tokens


HYGIENE_FILTER = Filter(
    name="hygiene",
    title="needs a hand",
    choices=[(name, title.lower()) for name, title in TITLES.items()],
    narrow=lambda rows, name, request: found_by(name, rows, timezone.now()),
)


@dataclass(frozen=True, slots=True)
class HygieneCard:
    """A number of tokens, and the query of the list that shows them."""

    title: str
    count: int
    query: str

    @property
    def shown(self) -> str:
        return f"{self.count:,}"


def cards_of(user: Any, project: str, now: datetime) -> Iterator[HygieneCard]:
    """
    Yield the cards for the tokens that the user may see, each counted up to 1,000.

    Args:
        project: The id of the project to which the list is narrowed, or an empty string for all.
    """
    tokens, query = Token.objects.all(), ""
    if not is_operator(user):
        tokens = tokens.filter(project__in=projects_of(user).values("pk"))
    if project:
        tokens, query = tokens.filter(project=project), f"&{urlencode({PROJECT: project})}"
    for name, title in TITLES.items():
        yield HygieneCard(title, capped(found_by(name, tokens, now), MOST_COUNTED), f"?hygiene={name}{query}")
    ending = tokens.live(now).filter(expires_at__gt=now, expires_at__lte=now + EndsFilter.WITHIN)
    yield HygieneCard("Expire within 7 days", capped(ending, MOST_COUNTED), f"?ends={ENDING}{query}")


def cards(request: HttpRequest) -> list[HygieneCard]:
    return list(cards_of(request.user, request.GET.get(PROJECT, ""), timezone.now()))


HYGIENE = ListPanel(name="hygiene", template="admin/sluicegate/hygiene.html", answer=cards)
