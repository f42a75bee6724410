"""Deletions that count what goes with a row, and that ask for its name, because it cannot be made again."""

from collections.abc import Callable, Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import capfirst

from controlplane.core.tables.counting import capped
from controlplane.core.tables.dependents import Dependents
from controlplane.objects.people.scope import is_operator
from controlplane.web.kit.page import PartsPage
from controlplane.web.kit.state import reposted, state_of

FIELD = "object_name"
# The most names shown of the objects that are in the way of a deletion.
NAMES_SHOWN = 20


class Keeping(list[str]):
    """The first of the objects that are in the way of a deletion, as links, and how many there are, as a string."""

    def __init__(self, shown: Sequence[str], total: int) -> None:
        super().__init__(shown)
        self.total, self.has_more = f"{total:,}", total > len(shown)


def deleted_with(
    model: type[Model], objs: QuerySet[Any] | Sequence[Model], request: HttpRequest
) -> tuple[list[str], dict[str, str], set[str], Keeping]:
    """
    Return what Django's own method returns, of which the first is empty, and the counts are strings.

    Django reads all that is deleted with a row, such as 100,000 tokens. A user who may not delete each of the rows that
    go with *objs* lacks the permission for their model.
    """
    found, counts, lacking = Dependents(model, objs), {}, set()
    for kind, rows in found.deleted():
        if not (count := capped(rows)):
            continue
        names = kind._meta
        counts[str(names.verbose_name if count == 1 else names.verbose_name_plural)] = f"{count:,}"
        if not _may_delete(request, kind, rows):
            lacking.add(str(names.verbose_name))
    keeping = [(rows, capped(rows)) for _, rows in found.keeping()]
    shown = [_linked(row) for rows, count in keeping if count for row in rows[:NAMES_SHOWN]]
    most = max((count for _, count in keeping), default=0)
    total = most if type(most) is not int else sum(count for _, count in keeping)
    return [], counts, lacking, Keeping(shown[:NAMES_SHOWN], total)


def _may_delete(request: HttpRequest, model: type[Model], rows: QuerySet) -> bool:
    """
    Return whether the user may delete each of the rows.

    What has no page, or is never deleted by itself, goes with the row that it belongs to.
    """
    page = admin.site._registry.get(model)
    if page is None or getattr(page, "ends_with_owner", False):
        return True
    if not page.has_delete_permission(request):
        return False
    if not isinstance(page, PartsPage) or is_operator(request.user):
        return True
    # Counted, because the database takes longer to find one that is not allowed. What is added meanwhile is not.
    allowed = page.scope.narrow(rows, request.user, "delete").count()
    return allowed == rows.count()


def _linked(row: Model) -> str:
    """Return the kind and the name of a row, with a link to its page if it has one."""
    names = row._meta
    if names.model not in admin.site._registry:
        return f"{capfirst(names.verbose_name)}: {row}"
    url = reverse(f"admin:{names.app_label}_{names.model_name}_change", args=[quote(row.pk)])
    return format_html('{}: <a href="{}">{}</a>', capfirst(names.verbose_name), url, row)


def chosen(request: HttpRequest, rows: QuerySet) -> QuerySet:
    """Return those of the rows of a list that an action was asked for, which are the ticked ones or all."""
    if request.POST.get("select_across") == "1":
        return rows
    return rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))


class NamedDeletion:
    """
    The name, or for several rows their number, that has to be typed to delete them, because they cannot be made again.

    A deletion that is confirmed without it becomes a request that asks again.
    """

    def __init__(self, request: HttpRequest, name: str, *, confirms: bool) -> None:
        self.context: dict[str, object] = {"asked_name": name, "given_name": request.POST.get(FIELD, "")}
        self.refuses = confirms and request.POST.get(FIELD, "").strip() != name
        if self.refuses:
            reposted(request, request.POST, without=("post",))
            self.context["name_error"] = f"Type {name} to delete. Nothing is deleted yet."


def name_of[M: Model](request: HttpRequest, rows: QuerySet[M], name: Callable[[M], str]) -> str:
    """Return what has to be typed to delete those of the rows of a list that an action was asked for."""
    rows, summary = chosen(request, rows), state_of(request).selection
    count = rows.count() if summary is None else summary.count
    if count == 1 and (row := rows.first()) is not None:
        return name(row)
    return f"{count} {rows.model._meta.verbose_name_plural}"
