"""How many rows PostgreSQL reads for the queries of a request."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import connection


def rows_read(queries: Iterable[str], table: str) -> int:
    """Return how many rows of a table and its partitions PostgreSQL reads for these queries, with those it drops."""
    found = 0
    with connection.cursor() as cursor:
        for sql in queries:
            if not sql.startswith("SELECT"):
                continue
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
            (plan,) = cursor.fetchone()
            (whole,) = json.loads(plan) if isinstance(plan, str) else plan
            found += sum(count for name, count in _reads(whole["Plan"]) if name.startswith(table))
    return found


def _reads(node: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the table and the rows of each scan in a plan."""
    if "Relation Name" in node:
        dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        yield node["Relation Name"], round((node["Actual Rows"] + dropped) * node["Actual Loops"])
    for child in node.get("Plans", ()):
        yield from _reads(child)
