"""The rows that a user has ticked in a list, or all rows of the list, between an action and its confirmation."""

import hashlib
from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model, QuerySet
from django.http import HttpRequest

# A longer list of names is not read, and the number is what matters.
NAMES_SHOWN = 20
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
    count, shown = rows.count(), list(rows[:NAMES_SHOWN])
    return {
        "count": count,
        "shown": shown,
        "more": count - len(shown),
        "select_across": everything,
        "posted": [row.pk for row in (shown[:1] if everything else rows)],
        "digest": digest_of(rows),
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


def has_changed(request: HttpRequest, rows: QuerySet) -> bool:
    """
    Return whether the selected rows differ from those that a user has seen, if any. *rows* is the whole list.

    The request keeps their keys for selected_keys().
    """
    seen = request.POST.get("selection")
    if seen is None:
        return False
    if request.POST.get("select_across") != "1":
        rows = rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))
    request.selected_keys = _keys_of(rows)
    return seen != _digest_of(request.selected_keys)


def selected_keys(request: HttpRequest, rows: QuerySet) -> list[str]:
    """Return the keys of the selected *rows*, which may be 100,000, without reading them a second time."""
    kept: list[str] | None = getattr(request, "selected_keys", None)
    return _keys_of(rows) if kept is None else kept


def digest_of(rows: QuerySet) -> str:
    """Return a digest of the primary keys of *rows*."""
    return _digest_of(_keys_of(rows))


def _keys_of(rows: QuerySet) -> list[str]:
    return sorted(map(str, rows.order_by().values_list("pk", flat=True)))


def _digest_of(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
