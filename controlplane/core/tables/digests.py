"""
A digest of the keys of rows, which shows whether a selection is still the same.

It begins with their number. Of 100,000 rows, PostgreSQL makes it without sending a key.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.models import QuerySet

_SEEDS = (0, 1)


@dataclass(frozen=True, slots=True)
class Summary:
    """
    The digest of rows, and their number by the value of one column.

    Attributes:
        counts: Without a column, the number of all rows by an empty string. It has no numbers of 0.
    """

    digest: str
    counts: Mapping[str, int]

    @property
    def count(self) -> int:
        return sum(self.counts.values())


def summary_of(rows: QuerySet, most: int | None = None, column: str = "") -> Summary:
    """
    Return a summary of *rows*, by one query, as a search for many rows takes long.

    Args:
        most: Of more rows, one more is counted, and the others are not read. None: all are read.
        column: The column by whose values they are counted. All of them are counted together without one.
    """
    chosen = rows.order_by().values_list("pk", *filter(None, [column]))
    if most is not None:
        chosen = chosen[: most + 1]
    if connection.vendor != "postgresql":
        found = list(chosen)
        return Summary(_digest_of([str(pk) for pk, *_ in found]), Counter(row[1] if column else "" for row in found))
    columns, group = ("key, grouped", "grouped") if column else ("key", "''")
    sums = ", ".join(f"SUM(hashtextextended(key::text, {seed}))" for seed in _SEEDS)
    try:
        sql, parameters = chosen.query.sql_with_params()
    except EmptyResultSet:  # nothing can match, and the database is not asked
        return Summary(_joined(0, *(None for _ in _SEEDS)), {})
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {group}, COUNT(*), {sums} FROM ({sql}) AS chosen ({columns}) GROUP BY 1", parameters)
        groups = cursor.fetchall()
    counts = {value: count for value, count, *_ in groups}
    totals = [sum(int(row[place]) for row in groups) for place in range(2, 2 + len(_SEEDS))]
    return Summary(_joined(sum(counts.values()), *totals), counts)


def digest_of(rows: QuerySet) -> str:
    """Return a digest of the primary keys of *rows*, in any order."""
    return summary_of(rows).digest


def digest_of_keys(keys: Sequence[str]) -> str:
    """Return the digest that :func:`digest_of` returns of the rows with these keys."""
    if connection.vendor != "postgresql":
        return _digest_of(keys)
    sums = ", ".join(f"SUM(hashtextextended(key, {seed}))" for seed in _SEEDS)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*), {sums} FROM unnest(%s::text[]) AS keys (key)", [list(keys)])
        return _joined(*cursor.fetchone())


def _joined(count: int, *sums: int | None) -> str:
    return "-".join([str(count), *(f"{int(number or 0) % 2**64:016x}" for number in sums)])


def _digest_of(keys: Sequence[str]) -> str:
    return f"{len(keys)}-" + hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:32]


def count_in(digest: str) -> int:
    """Return the number of rows of which somebody posts a digest, or -1 if it is none."""
    count = digest.partition("-")[0]
    return int(count) if count.isdecimal() and len(count) < 10 else -1
