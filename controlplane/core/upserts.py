"""Rows that are added to the sums of those that have their key."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
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
    whole = [(*values, *numbers) for values, numbers in rows]
    operators = merged_by or {}
    added = ", ".join(f"{name} = {table}.{name} {operators.get(name, '+')} excluded.{name}" for name in names)
    source, parameters = _by_columns(model, columns, whole) if connection.vendor == "postgresql" else _by_rows(whole)
    statement = (
        f"INSERT INTO {table} ({', '.join(columns)}) {source} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def _by_columns(
    model: type[models.Model], columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> tuple[str, list[Any]]:
    """Return the source of the rows as an array for each column, which PostgreSQL reads faster than many values."""
    arrays = ", ".join(f"%s::{kind}[]" for kind in _kinds(model, tuple(columns)))
    return f"SELECT * FROM unnest({arrays})", [_array(values) for values in zip(*rows, strict=True)]


def _array(values: Sequence[Any]) -> str:
    """Return values of one type as PostgreSQL writes an array. The driver would take several times as long for it."""
    if not isinstance(values[0], str):
        return f"{{{','.join(map(str, values))}}}"
    if any("\\" in value or '"' in value for value in values):
        values = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    joined = '","'.join(values)
    return f'{{"{joined}"}}'


@cache
def _kinds(model: type[models.Model], columns: tuple[str, ...]) -> list[str]:
    kinds = [str(model._meta.get_field(name).db_type(connection)) for name in columns]
    # A cast to varchar(40) would cut what is too long, which the insertion refuses.
    return ["text" if kind.startswith("varchar") else kind for kind in kinds]


def _by_rows(rows: Sequence[Sequence[Any]]) -> tuple[str, list[Any]]:
    one_row = f"({', '.join(['%s'] * len(rows[0]))})"
    return f"VALUES {', '.join([one_row] * len(rows))}", [_adapted(value) for row in rows for value in row]


def _adapted(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return connection.ops.adapt_datefield_value(value) if isinstance(value, date) else value
