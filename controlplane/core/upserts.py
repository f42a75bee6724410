"""Rows that are added to the sums of those that have their key."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from itertools import batched
from operator import add
from typing import Any

from django.db import connection, models

# A statement has at most 32766 parameters in SQLite, and a row has at most 32. PostgreSQL gets a parameter for each
# column, and reads larger statements a little faster.
ROWS_A_STATEMENT = {"sqlite": 1_000, "postgresql": 5_000}
# Sums stay there, above or below 0. Rows may be forged, and a sum that does not fit would keep all that is added with
# it from being counted. It leaves room for a page to add up many sums.
MOST_SUM = 2**52
_LARGEST = {"sqlite": "MAX", "postgresql": "GREATEST"}
_SMALLEST = {"sqlite": "MIN", "postgresql": "LEAST"}


Stored = tuple[Sequence[object], Sequence[object]]
Keyed = tuple[Sequence[Any], Sequence[int]]
Statement = tuple[str, list[Any]]

Sums = dict[Any, dict[tuple[Any, ...], Sequence[int]]]
"""Numbers by their group, such as a minute, and by a key within it."""


def bounded_sum(number: int, most: int = MOST_SUM) -> int:
    """Return a sum, or *most* with its sign if it is further from 0."""
    return max(-most, min(number, most))


def summed(rows: Iterable[tuple[Any, tuple[Any, ...], Sequence[int]]], most: int = MOST_SUM) -> Sums:
    """
    Return the sums of rows of a group, a key and numbers, as new dictionaries. No sequence of *rows* is changed.

    Args:
        most: The largest sum, above or below 0. A larger one stays there.
    """
    sums: Sums = {}
    for group, key, numbers in rows:
        by_key = sums.get(group)
        if by_key is None:
            by_key = sums[group] = {}
        held = by_key.get(key)
        if held is None:
            by_key[key] = numbers
            continue
        both = by_key[key] = tuple(map(add, held, numbers))
        if max(both) > most or min(both) < -most:
            by_key[key] = tuple(bounded_sum(number, most) for number in both)
    return sums


def add_up(
    model: type[models.Model],
    key: Sequence[str],
    names: Sequence[str],
    rows: Iterable[Stored],
    merged_by: Mapping[str, str] | None = None,
) -> None:
    """Execute the statements of :func:`upserts`."""
    execute(upserts(model, key, names, rows, merged_by))


def execute(statements: Iterable[Statement]) -> None:
    with connection.cursor() as cursor:
        for statement, parameters in statements:
            cursor.execute(statement, parameters)


def upserts(
    model: type[models.Model],
    key: Sequence[str],
    names: Sequence[str],
    rows: Iterable[Stored],
    merged_by: Mapping[str, str] | None = None,
    computed: Mapping[str, str] | None = None,
) -> list[Statement]:
    """
    Return the statements that insert rows, or add their numbers to those of the row with the same key.

    The upsert of Django's ORM can replace a value but not add to it. Two transactions at the same time must have their
    rows in the same order, because each waits for the rows that the other one has locked.

    Args:
        key: The columns of the model's unique constraint. The first of each pair of *rows* has their values.
        names: The columns of the numbers, which the second of each pair has.
        merged_by: The operators of columns whose numbers are not added, such as ``|`` for bits.
        computed: The expressions of columns that have a new value when a row gets more, from both rows.
    """
    table, columns = model._meta.db_table, (*key, *names)
    operators = merged_by or {}
    merged = {
        name: f"{table}.{name} {operators[name]} excluded.{name}" if name in operators else sum_in_sql(table, name)
        for name in names
    }
    added = ", ".join(f"{name} = {value}" for name, value in (merged | dict(computed or {})).items())
    built = []
    for some in batched(rows, ROWS_A_STATEMENT[connection.vendor]):
        source, parameters = _by_columns(model, columns, some) if connection.vendor == "postgresql" else _by_rows(some)
        insertion = f"INSERT INTO {table} ({', '.join(columns)}) {source}"
        built.append((f"{insertion} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}", parameters))
    return built


def sum_in_sql(table: str, name: str, most: int = MOST_SUM) -> str:
    """Return the expression of a column's new value, which is at most *most* from 0, even if the present one is not."""
    smallest, largest, more = _SMALLEST[connection.vendor], _LARGEST[connection.vendor], f"excluded.{name}"
    return f"{largest}({smallest}({table}.{name}, {most} - {more}), -{most} - {more}) + {more}"


def _by_columns(model: type[models.Model], columns: Sequence[str], rows: Sequence[Stored]) -> tuple[str, list[Any]]:
    """Return the source of the rows as an array for each column, which PostgreSQL reads faster than many values."""
    arrays = ", ".join(f"%s::{kind}[]" for kind in _kinds(model, tuple(columns)))
    keys, numbers = zip(*rows, strict=True)
    values = (*zip(*keys, strict=True), *zip(*numbers, strict=True))
    return f"SELECT * FROM unnest({arrays})", [_array(column) for column in values]


def _array(values: Sequence[Any]) -> str:
    """Return values of one type as PostgreSQL writes an array. The driver would take several times as long for it."""
    if isinstance(values[0], date):  # few different ones, which take long to write
        written = {value: str(value) for value in set(values)}
        return f"{{{','.join(map(written.__getitem__, values))}}}"
    if not isinstance(values[0], str):
        return f"{{{','.join(map(str, values))}}}"
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        joined = '","'.join([value.replace("\\", "\\\\").replace('"', '\\"') for value in values])
    return f'{{"{joined}"}}'


@cache
def _kinds(model: type[models.Model], columns: tuple[str, ...]) -> list[str]:
    kinds = [str(model._meta.get_field(name).db_type(connection)) for name in columns]
    # A cast to varchar(40) would cut what is too long, which the insertion refuses.
    return ["text" if kind.startswith("varchar") else kind for kind in kinds]


def _by_rows(rows: Sequence[Stored]) -> tuple[str, list[Any]]:
    whole = [(*values, *numbers) for values, numbers in rows]
    one_row = f"({', '.join(['%s'] * len(whole[0]))})"
    return f"VALUES {', '.join([one_row] * len(whole))}", [_adapted(value) for row in whole for value in row]


def _adapted(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return connection.ops.adapt_datefield_value(value) if isinstance(value, date) else value
