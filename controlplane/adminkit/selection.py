"""The rows that a user has ticked in a list, or all rows of the list, between an action and its confirmation."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from controlplane.lists.digests import count_in, digest_of

# A longer list of names is not read, and the number is what matters.
NAMES_SHOWN = 20
FEW = 500
# Parameters of a list's address that only say how it is shown.
NO_FILTERS = ("o", "p", "all", "e")
NAMES = {"q": "search"}


def selection(request: HttpRequest, rows: QuerySet) -> dict[str, Any]:
    """
    Return a dict of what the page of a confirmation shows of *rows* and posts back.

    All rows of a list are posted back as that, and not one by one, because a form has at most 1,000 fields. The digest
    shows whether the rows are still the same then.
    """
    everything = request.POST.get("select_across") == "1"
    digest = digest_of(rows)
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
            seen = admin.site.get_model_admin(other).narrowed(other._default_manager.all(), request.user)
            value = str(seen.filter(pk=value).first() or value)
        yield NAMES.get(parameter, name if lookup in ("id__exact", "exact") else parameter), value


def _related(model: type[Model], name: str) -> type[Model] | None:
    try:
        return model._meta.get_field(name).related_model
    except FieldDoesNotExist:
        return None


def has_changed(request: HttpRequest, rows: QuerySet, most_checked: int | None) -> bool:
    """
    Return whether the selected rows differ from those that a user has seen, if any.

    Args:
        rows: The whole list.
        most_checked: Of more rows only the number is compared here, as a job checks them before it begins.
    """
    seen = request.POST.get("selection")
    if seen is None:
        return False
    if request.POST.get("select_across") != "1":
        rows = rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))
    elif most_checked is not None and (count := rows.count()) > most_checked:
        return count != count_in(seen)
    return seen != digest_of(rows)


def _first(rows: QuerySet, count: int) -> list[Model]:
    """Return the first rows that the page names, of *count* in all."""
    if count <= FEW:
        # By their keys, because the database would look for few rows in the order of all rows of the table.
        rows = rows.filter(pk__in=list(rows.order_by().values_list("pk", flat=True)))
    return list(rows[:NAMES_SHOWN])
