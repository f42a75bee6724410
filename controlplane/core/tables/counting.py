"""Numbers of rows that are counted only so far, because counting millions of rows takes longer than showing a page."""

from typing import Any

from django.db.models import IntegerField, QuerySet, Subquery

MOST = 10_000


class MoreThan(int):
    """A number of rows that were counted no further. Pages show it as "more than 10,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"

    def __format__(self, spec: str) -> str:
        return str(self)


class CappedCount(Subquery):
    """The number of rows of a subquery as a column of another query. It is *most* + 1 if there are more than *most*."""

    template = "(SELECT COUNT(*) FROM (%(subquery)s) AS counted)"
    output_field = IntegerField()

    def __init__(self, rows: QuerySet, most: int = MOST, **extra: Any) -> None:
        super().__init__(rows.order_by().values("pk")[: most + 1], **extra)


def capped(rows: QuerySet, most: int = MOST) -> int:
    """Return the number of rows of a query, counted up to *most*, which is a MoreThan if there are more."""
    return as_capped(rows.order_by()[: most + 1].count(), most)


def as_capped(number: int, most: int = MOST) -> int:
    """Return the number itself, or a MoreThan if it is greater than *most*."""
    return MoreThan(most) if number > most else number
