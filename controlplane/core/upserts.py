"""Rows that are added to the sums of those that have their key."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from django.db import connection, models


def add_up(
    model: type[models.Model],
    key: Sequence[str],
    names: Sequence[str],
    rows: Iterable[tuple[Sequence[Any], Sequence[int]]],
    merged_by: Mapping[str, str] | None = None,
) -> None:
    """
    Insert rows, or add their numbers to those of the row with the same key, in one statement.

    The upsert of Django's ORM can replace a value but not add to it.

    Args:
        key: The columns of the model's unique constraint. The first of each pair of *rows* has their values.
        names: The columns of the numbers, which the second of each pair has.
        merged_by: The operators of columns whose numbers are not added, such as ``|`` for bits.
    """
    table, columns = model._meta.db_table, (*key, *names)
    values = [_adapted(value) for row in rows for value in (*row[0], *row[1])]
    one_row = f"({', '.join(['%s'] * len(columns))})"
    operators = merged_by or {}
    added = ", ".join(f"{name} = {table}.{name} {operators.get(name, '+')} excluded.{name}" for name in names)
    statement = (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one_row] * (len(values) // len(columns)))} "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def _adapted(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return connection.ops.adapt_datefield_value(value) if isinstance(value, date) else value
