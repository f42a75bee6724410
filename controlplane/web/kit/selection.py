"""The rows that a user has ticked in a list, or all rows of the list, between an action and its confirmation."""

from collections.abc import Iterator
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from controlplane.core.tables.digests import Summary, count_in, digest_of, summary_of
from controlplane.web.kit.page import page_of
from controlplane.web.kit.state import state_of

# A longer list of names is not read, and the number is what matters.
NAMES_SHOWN = 20
FEW = 500
# Parameters of a list's address that only say how it is shown.
NO_FILTERS = ("o", "p", "all", "e")
NAMES = {"q": "search"}


def everything(request: HttpRequest, rows: QuerySet, most: int, column: str = "") -> Summary | None:
    """
    Return a summary of all rows of a list if they are selected, or None if some are ticked. The page keeps it.

    The arguments are those of ``summary_of``.
    """
    is_all = request.POST.get("select_across") == "1"
    state_of(request).selection = summary_of(rows, most, column) if is_all else None
    return state_of(request).selection


def selection(request: HttpRequest, rows: QuerySet) -> dict[str, Any]:
    """
    Return a dict of what the page of a confirmation shows of *rows* and posts back.

    All rows of a list are posted back as that, and not one by one, because a form has at most 1,000 fields. The digest
    shows whether the rows are still the same then.
    """
    everything = request.POST.get("select_across") == "1"
    saved = state_of(request).selection
    digest = digest_of(rows) if saved is None else saved.digest
    count = count_in(digest)
    shown = _first(rows, count)
    return {
        "count": count,
        "shown": shown,
        "more": count - len(shown),
        "select_across": everything,
        "posted": [row.pk for row in (shown[:1] if everything else rows)],
        "digest": digest,
        "searched": list(_searched(request, rows.model)) if count else [],
    }


def _searched(request: HttpRequest, model: type[Model]) -> Iterator[tuple[str, str]]:
    """
    Yield the search and the filters of the list that the rows were chosen from, as names and values.

    The id of a row, such as that of a project, is replaced by the row's name if the user may see that row.
    """
    for parameter, value in request.GET.items():
        if not value or parameter in NO_FILTERS:
            continue
        name, _, lookup = parameter.partition("__")
        if lookup in ("id__exact", "pk__exact") and (other := _related(model, name)):
            seen = page_of(other).scope.narrow(other._default_manager.all(), request.user)
            value = str(seen.filter(pk=value).first() or value)
        yield NAMES.get(parameter, name if lookup in ("id__exact", "exact") else parameter), str(value)


def _related(model: type[Model], name: str) -> type[Model] | None:
    try:
        return model._meta.get_field(name).related_model
    except FieldDoesNotExist:
        return None


def has_changed(request: HttpRequest, rows: QuerySet) -> bool:
    """Return whether the selected ones of *rows*, the whole list, differ from those that a user has seen, if any."""
    seen = request.POST.get("selection")
    if seen is None:
        return False
    if saved := state_of(request).selection:
        return seen != saved.digest
    return seen != digest_of(rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME)))


def _first(rows: QuerySet, count: int) -> list[Model]:
    """Return the first rows that the page names, of *count* in all."""
    if count <= FEW:
        # By their keys, because the database would look for few rows in the order of all rows of the table.
        rows = rows.filter(pk__in=list(rows.order_by().values_list("pk", flat=True)))
    return list(rows[:NAMES_SHOWN])
