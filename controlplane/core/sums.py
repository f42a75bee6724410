"""Sums of columns in a query, and a scale for charts of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import Sum


def sums(names: Iterable[str]) -> dict[str, Sum]:
    """Return the sum of each column, to annotate or to aggregate. :func:`read_sums` reads them from a row."""
    # An annotation must not have the name of a column.
    return {f"sum_{name}": Sum(name) for name in names}


def read_sums(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, int]:
    """Return the sums in a row of a result by the names of the columns. Each is 0 without any row to sum up."""
    return {name: row[f"sum_{name}"] or 0 for name in names}


def rounded_up(value: int, unit: int = 1) -> int:
    """Return the least number of at least *value* that four equal parts divide into round numbers of the unit."""
    scale = unit
    while True:
        for step in (4, 8, 12, 16, 20):
            if step * scale >= value:
                return step * scale
        scale *= 10
