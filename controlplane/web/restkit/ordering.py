"""The order of a list, and its search, as parameters of a query."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Model, QuerySet
from rest_framework import serializers

from controlplane.core.tables.searching import IndexedSearch

# Columns that are unique together, by the name under which a client orders by the first of them.
Orders = Mapping[str, tuple[str, ...]]


class OrderField(serializers.ChoiceField):
    """The field by which a list is ordered, with a minus before it for the opposite order."""

    def __init__(self, *names: str, usual: str) -> None:
        choices = [order for name in names for order in (name, f"-{name}")]
        super().__init__(choices, required=False, help_text=f"A minus is the opposite order. If left out, {usual}.")


class SearchField(serializers.CharField):
    """Words that must all be found, in the columns that have an index for it."""

    def __init__(self, where: str) -> None:
        text = f"Words, all of which must be found in {where}. Some databases find only beginnings."
        super().__init__(required=False, max_length=200, help_text=text)


def columns_of(order: str, orders: Orders) -> tuple[str, ...]:
    """Return the columns of an order, each with a minus if it falls."""
    columns = orders[order.removeprefix("-")]
    if not order.startswith("-"):
        return columns
    return tuple(name.removeprefix("-") if name.startswith("-") else f"-{name}" for name in columns)


def found_by[M: Model](search: IndexedSearch, rows: QuerySet[M], query: Mapping[str, Any]) -> QuerySet[M]:
    """Return the rows that the search of a query finds, or all if it has none."""
    return search.find(rows, query["search"]) if "search" in query else rows
