"""What a request to a page costs: time, queries, rows that the database has sent, and time in the database."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.http import QueryDict
from django.test import Client

POSTED = " posts "


@dataclass
class Cost:
    """
    What one or more requests cost.

    Attributes:
        processor: The processor time of this process and of that of its connection in the server. A busy machine does
            not change it. Parallel workers of a query are not in it.
    """

    seconds: float = 0.0
    processor: float = 0.0
    queries: int = 0
    rows: int = 0
    in_database: float = 0.0


@dataclass(frozen=True)
class Visit:
    """The status of a page, and what it costs. *slowest* is the query that took longest."""

    status: int
    cost: Cost
    slowest: str = ""


class _CountingCursor(CursorWrapper):
    """A cursor that adds to a Cost."""

    cost: Cost

    def execute(self, sql: str, params: Any = None) -> Any:
        self.cost.queries += 1
        began = time.perf_counter()
        try:
            return super().execute(sql, params)
        finally:
            spent = time.perf_counter() - began
            self.cost.in_database += spent
            if spent > _slowest[0]:
                _slowest[:] = [spent, f"{sql} {params}"]

    def __iter__(self) -> Iterator[Any]:
        for row in super().__iter__():
            self.cost.rows += 1
            yield row

    def fetchone(self) -> Any:
        row = self.cursor.fetchone()
        self.cost.rows += row is not None
        return row

    def fetchmany(self, *args: Any) -> Any:
        rows = self.cursor.fetchmany(*args)
        self.cost.rows += len(rows)
        return rows

    def fetchall(self) -> Any:
        rows = self.cursor.fetchall()
        self.cost.rows += len(rows)
        return rows


_slowest: list[Any] = [0.0, ""]


@contextmanager
def counted() -> Iterator[Cost]:
    """Yield what the queries of the block cost so far."""
    cost, usual = Cost(), connection.make_cursor

    def make(cursor: Any) -> CursorWrapper:
        made = _CountingCursor(cursor, connection)
        made.cost = cost
        return made

    _slowest[:] = [0.0, ""]
    connection.make_cursor = make
    try:
        yield cost
    finally:
        connection.make_cursor = usual


def visit(client: Client, url: str) -> Visit:
    """
    Return what one request to a page costs, or to a file until its first line is there.

    Of an address with POSTED in it, what follows is posted, as the query of an address names fields.
    """
    address, is_post, fields = url.partition(POSTED)
    posted = QueryDict(fields)
    with counted() as cost:
        busy, began = _processor_seconds(), time.perf_counter()
        response = client.post(address, dict(posted.lists())) if is_post else client.get(address)
        if response.streaming:
            next(iter(response))
            # The client's own iterator, which leaves the connection to the database open at its end.
            response._iterator.close()
        cost.seconds = time.perf_counter() - began
        cost.processor = _processor_seconds() - busy
    return Visit(response.status_code, cost, _slowest[1])


def _processor_seconds() -> float:
    """Return the processor time so far of this process and, on PostgreSQL under Linux, of that of the connection."""
    if connection.vendor != "postgresql" or connection.connection is None:
        return time.process_time()
    run = Path(f"/proc/{connection.connection.info.backend_pid}/schedstat")
    served = int(run.read_text().split()[0]) / 1e9 if run.exists() else 0.0
    return time.process_time() + served


def measured(client: Client, url: str, times: int, look: Callable[[Client, str], Visit] = visit) -> Visit:
    """Return a visit with the median of several times, after a first one that is not counted."""
    look(client, url)
    visits = [look(client, url) for _ in range(times)]
    seconds = median(one.cost.seconds for one in visits)
    in_database = median(one.cost.in_database for one in visits)
    processor = median(one.cost.processor for one in visits)
    last = visits[-1]
    return Visit(last.status, Cost(seconds, processor, last.cost.queries, last.cost.rows, in_database), last.slowest)
