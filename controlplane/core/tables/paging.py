"""Pages of long lists, which neither count nor sort more than they must."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.paginator import Page, Paginator
from django.db.models import Model, QuerySet
from django.http import QueryDict
from django.utils.functional import cached_property
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from unfold.admin import checkbox

from controlplane.core.tables.counting import MOST, MoreThan, capped


class CappedPaginator(Paginator):
    """A paginator that counts 10,000 rows at most. The rows after them are found by a search or a filter."""

    most: ClassVar[int] = MOST
    # By the name of a column without an index: one that has an index, and has a part of its value, as a day of a time.
    coarser: ClassVar[dict[str, str]] = {}

    @cached_property
    def count(self) -> int:
        return capped(self.object_list, self.most) if isinstance(self.object_list, QuerySet) else super().count

    @property
    def template_name(self) -> str:
        """The theme shows the pages by this template, or by its own one if it is empty."""
        return "admin/sluicegate/capped_pages.html" if isinstance(self.count, MoreThan) else ""

    def _get_page(self, rows: Any, number: int, paginator: Paginator) -> Page:
        if isinstance(rows, QuerySet):
            # The database sorts keys faster than whole rows that are joined with others.
            keys = keys_of(rows, self.coarser)
            found = _unsliced(rows).order_by().in_bulk(keys)
            rows = [found[key] for key in keys if key in found]
        return Page(rows, number, paginator)


def keys_of(page: QuerySet, coarser: Mapping[str, str]) -> list[Any]:
    """Return the keys of the rows of a page, which is a sliced query, in its order."""
    by = next((name for name in page.query.order_by[:1] if isinstance(name, str)), "")
    column = by.lstrip("-")
    low, high = page.query.low_mark, page.query.high_mark or sys.maxsize
    if column in coarser:
        return _keys_of_coarser(_unsliced(page), by, coarser[column], low, high)
    name, _, text = column.partition("__")
    if text and page.model._meta.get_field(name).null:
        return _keys_of_parts(_unsliced(page), name, text, low, high)
    return list(page.values_list("pk", flat=True))


def _unsliced(page: QuerySet) -> QuerySet:
    rows = page.all()
    rows.query.clear_limits()
    return rows


def _keys_of_parts(rows: QuerySet, name: str, text: str, low: int, high: int) -> list[Any]:
    """
    Return the keys of a page of rows that are sorted by a text of other rows. Those that have none come last.

    Of those that have one, the database reads the index of the text in order. Of both kinds together it sorts all.
    """
    having = rows.filter(**{f"{name}__{text}__gte": ""})
    without = rows.filter(**{name: None}).order_by(*rows.query.order_by[1:])
    return _keys_of_both(having, without, low, high)


def _keys_of_coarser(rows: QuerySet, by: str, column: str, low: int, high: int) -> list[Any]:
    """
    Return the keys of a page of rows that are sorted by a column. *column* has an index and a part of its value.

    Those without a value count as the smallest, whatever the database does. Of the others, it reads the index, and
    sorts only the rows that are equal in it.
    """
    is_descending = by.startswith("-")
    having = rows.exclude(**{column: None}).order_by(f"-{column}" if is_descending else column, *rows.query.order_by)
    without = rows.filter(**{column: None}).order_by(*rows.query.order_by[1:])
    first, second = (having, without) if is_descending else (without, having)
    return _keys_of_both(first, second, low, high)


def _keys_of_both(first: QuerySet, second: QuerySet, low: int, high: int) -> list[Any]:
    """Return the keys from *low* to *high* of the rows of two queries, the second behind the first."""
    keys = list(first.values_list("pk", flat=True)[low:high])
    if len(keys) < high - low:
        passed = low + len(keys) if keys else first.count()
        keys += second.values_list("pk", flat=True)[max(0, low - passed) : high - passed]
    return keys


class UnreadPaginator(Paginator):
    """A paginator of rows that no page shows, so that they are neither counted nor read."""

    @cached_property
    def count(self) -> int:
        return sys.maxsize  # so that the list asks for a page, and does not show all rows itself

    def page(self, number: int | str) -> Page:
        return Page([], 1, self)


def reads_no_page(posted: QueryDict) -> bool:
    """Return whether a posted list is an action on its rows, for which no page is shown."""
    return ACTION_CHECKBOX_NAME in posted and "_save" not in posted


# A text that is in no template, and stands for the key of a row.
_KEY = "key-of-the-row"


@cache
def _box() -> str:
    return checkbox.render(ACTION_CHECKBOX_NAME, _KEY)


def box_of(row: Model) -> SafeString:
    """Return the box that selects a row. The theme renders three templates for each, a tenth of a list's time."""
    return mark_safe(_box().replace(_KEY, escape(row.pk)))
