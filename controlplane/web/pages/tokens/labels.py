"""The tokens grouped by a label, with links to the tokens and to the usage of each value."""

from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.db.models import Case, Count, Max, QuerySet, When
from django.db.models.fields.json import KeyTextTransform
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html_join

from controlplane.objects.projects.models import Token, TokenQuerySet
from controlplane.traffic.usage.models import UsageRow
from controlplane.web.kit.links import statement_url
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.parts import ListPanel, View
from controlplane.web.kit.site import list_url

# The names are those of the newest tokens, because reading all of a million takes seconds.
NEWEST = 5_000
VALUES_SHOWN = 200
MOST_GROUPED = 50_000


def names_of(tokens: TokenQuerySet) -> list[str]:
    """Return the names of the labels that the newest of the *tokens* have, sorted."""
    labels = tokens.exclude(labels={}).order_by("-created_at").values_list("labels", flat=True)[:NEWEST]
    return sorted({name for label in labels for name in label})


def values_of(tokens: TokenQuerySet, name: str) -> tuple[list[dict[str, Any]], int]:
    """
    Return the values of a label with the number of their tokens and the last use of them, the most frequent first.

    There are at most ``VALUES_SHOWN`` + 1, so that a list can say whether there are more. The second is the number of
    tokens without the label, which the same query counts, because each reads all labels.
    """
    grouped = tokens.order_by().annotate(value=KeyTextTransform(name, "labels")).values("value")
    counted = grouped.annotate(count=Count("pk"), used=Max("last_used_at"), labelled=Count("value"))
    # Those without the label have no value, and come first.
    order = Case(When(labelled=0, then=0), default=1), "-count", "value"
    found = list(counted.order_by(*order)[: VALUES_SHOWN + 2])
    without = found.pop(0)["count"] if found and found[0]["value"] is None else 0
    return found[: VALUES_SHOWN + 1], without


def label_query(name: str, value: str) -> str:
    """Return the query of a list that is filtered by a label, without a question mark."""
    return urlencode({"label": f"{name}={value}"})


def usage_url(name: str, value: str) -> str:
    """Return the address of the daily usage of the tokens with a label."""
    return list_url(UsageRow, f"?{label_query(name, value)}&period=day")


def labels_view(page: PartsPage, request: HttpRequest) -> HttpResponse:
    """Return the page of the active tokens that the user may see, grouped by one of their labels."""
    if not page.has_view_permission(request):
        raise PermissionDenied
    tokens: QuerySet[Token] = page.scope.narrow(Token.objects.live(timezone.now()), request.user)
    oldest = tokens.order_by("-created_at").values_list("created_at", flat=True)[MOST_GROUPED : MOST_GROUPED + 1]
    is_cut = len(oldest) > 0
    if is_cut:
        tokens = tokens.filter(created_at__gt=oldest[0])
    names = names_of(tokens)
    chosen = request.GET.get("name", "") or next(iter(names), "")
    rows, without = values_of(tokens, chosen) if chosen else ([], tokens.count())
    for row in rows:
        row["tokens_url"] = list_url(Token, f"?{label_query(chosen, row['value'])}")
        row["usage_url"] = usage_url(chosen, row["value"])
        row["month_url"] = statement_url(tagged=f"{chosen}={row['value']}")
    return page.page(
        request,
        "labels.html",
        title="Tokens by label",
        names=names,
        chosen=chosen,
        rows=rows[:VALUES_SHOWN],
        has_more=len(rows) > VALUES_SHOWN,
        most=MOST_GROUPED if is_cut else None,
        without=without,
    )


LABELS_VIEW = View(path="labels/", name="labels", answer=labels_view)
LABELS_LINK = ListPanel(
    name="labels_url",
    template="admin/sluicegate/labels_link.html",
    answer=lambda request: reverse("admin:projects_token_labels"),
)


def linked_labels(token: Token) -> str:
    """Return the labels of a token as links to the tokens that have them, too, or an empty string."""
    pairs = [(list_url(Token, f"?{label_query(*pair)}"), "=".join(pair)) for pair in token.labels.items()]
    return format_html_join(" ", '<a class="sg-badge" href="{}">{}</a>', pairs)
