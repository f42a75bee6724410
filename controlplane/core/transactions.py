"""Transactions that see the rows of one moment, or that run one after the other although they share no row."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction


@contextmanager
def snapshot() -> Iterator[None]:
    """
    Run the block, which must only read, so that all its reads see the same state of the database.

    A block inside an open transaction sees what that transaction sees.
    """
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "sqlite":
        with _deferred(), transaction.atomic():
            yield
    else:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield


@contextmanager
def _deferred() -> Iterator[None]:
    """Run the block with transactions of SQLite that begin without the write lock, which a reader does not need."""
    usual = connection.transaction_mode
    connection.transaction_mode = "DEFERRED"
    try:
        yield
    finally:
        connection.transaction_mode = usual


def take_turn(name: str) -> None:
    """
    Wait until no other transaction has the turn of this name, and keep it until the open transaction ends.

    Locked rows cannot do this if the change itself decides which rows they are. A transaction that waited for such a
    row keeps its lock although it then needs another one, and two of them wait for each other.
    """
    # A transaction of SQLite has the whole database from its start, so it has every turn.
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"sluicegate:{name}"])


def is_deadlock(error: Exception) -> bool:
    """Return whether the database has undone a transaction because it and another one waited for each other."""
    return getattr(error.__cause__, "sqlstate", "") == "40P01"
