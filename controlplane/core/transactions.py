"""Transactions that see the rows of one moment, or that run one after the other although they share no row."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError, connection, connections, models, transaction

# A process that is suspended inside a transaction keeps its locks. PostgreSQL ends the transaction after this time.
IDLE_MS = 5_000
# Longer than that, and than others need who wait for the same rows before this one.
LOCK_WAIT_MS = 10_000
# The errors of PostgreSQL for a transaction that waited too long, and for one that was idle for too long.
LOCK_NOT_AVAILABLE, IDLE_IN_TRANSACTION = "55P03", "25P03"
# How often a deletion in pieces waits for rows that others have locked.
MOST_WAITS = 3


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
    connection.ensure_connection()  # which sets the mode
    attributes = vars(connections[connection.alias])
    usual = attributes["transaction_mode"]
    attributes["transaction_mode"] = "DEFERRED"
    try:
        yield
    finally:
        attributes["transaction_mode"] = usual


@contextmanager
def much_memory() -> Iterator[None]:
    """
    Run the block, which sums many rows. PostgreSQL adds them up in memory, and writes nothing to its disk for that.
    """
    if connection.vendor != "postgresql":
        yield
        return
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL work_mem = '64MB'")
        yield
        cursor.execute("SET LOCAL work_mem = DEFAULT")


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


@contextmanager
def bounded(lock_wait_ms: int | None = None) -> Iterator[None]:
    """
    Run the block in a transaction that waits at most LOCK_WAIT_MS for each lock and is ended if idle for IDLE_MS.

    For work that is repeated later, and whose rows others wait for. Its statements are prepared before it, because the
    time that Python takes between two of them counts as idle. SQLite has a limit of its own for the one lock it has.

    Args:
        lock_wait_ms: Another time to wait for each lock.
    Raises:
        DatabaseError: One of both times was exceeded, as ``was_held_up`` says, or any other error of the database.
    """
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT set_config('lock_timeout', %s, true),"
                    " set_config('idle_in_transaction_session_timeout', %s, true)",
                    [str(lock_wait_ms or LOCK_WAIT_MS), str(IDLE_MS)],
                )
        yield


def was_held_up(exc: DatabaseError) -> bool:
    """Return whether a lock did not come in time, or this process was suspended inside its transaction."""
    return getattr(exc.__cause__, "sqlstate", "") in (LOCK_NOT_AVAILABLE, IDLE_IN_TRANSACTION)


class RowsLeft(Exception):
    """Raised if rows stay because others have them locked. ``deleted`` is the number of those that were deleted."""

    def __init__(self, rows: models.QuerySet, deleted: int) -> None:
        super().__init__(f"Some {rows.model._meta.verbose_name_plural} stay, because they are locked.")
        self.deleted = deleted


def delete_in_pieces(rows: models.QuerySet, at_once: int) -> int:
    """
    Delete rows in small transactions, because drains wait for each of them, and return the number of deleted rows.

    What a suspension of this process or a deadlock has undone is deleted again. After rows that somebody has locked did
    not come in time, all others are deleted first.

    Raises:
        RowsLeft: Rows were still locked after MOST_WAITS.
    """
    deleted, waits, skips = 0, 0, False
    while True:
        try:
            with bounded():
                chosen = rows.select_for_update(skip_locked=True) if skips else rows
                ids = list(chosen.values_list("pk", flat=True)[:at_once])
                number, _ = rows.model._default_manager.filter(pk__in=ids).delete()
        except DatabaseError as exc:
            if not (was_held_up(exc) or is_deadlock(exc)):
                raise
            waits, skips = waits + 1, True
            if waits == MOST_WAITS:
                raise RowsLeft(rows, deleted) from exc
        else:
            deleted += number
            if ids:
                waits = 0
            elif skips and rows.exists():
                skips = False  # all that are left are locked
            else:
                return deleted
