"""
Tables with partitions in PostgreSQL, so that what is no longer kept is dropped and not deleted row by row.

Such a table has rows of several periods, and a partition for each. That of minutes has one for each day, and that of
hours one for each month. Rows at other times, which come late or by a wrong clock, are in a default partition. Other
databases have plain tables.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.db import InternalError, OperationalError, ProgrammingError, connection

from controlplane.core.transactions import bounded

logger = logging.getLogger(__name__)

# The periods that are parted by time, and how a name says when its partition begins.
PARTED = {"minute": "%Y%m%d", "hour": "%Y%m"}
# How far ahead partitions are made. If no worker runs for longer, rows are in the default partition until one does.
AHEAD = timedelta(days=3)
# A drain waits for a partition that is made or dropped, and so does every reader. So this waits only shortly for them.
LOCK_TIMEOUT_MS = 2_000
# Most rows grow with each drain. An update that finds room in its page needs no new entry in any index.
FILLFACTOR = 70
NO_RIGHT = "42501"


class Partition(NamedTuple):
    """A partition by time. It has the rows from an instant on and before another one."""

    period: str
    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, period: str, at: datetime) -> "Partition":
        """Return the partition of minutes or hours that has the rows at an instant."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if period == "minute":
            return cls(period, day, day + timedelta(days=1))
        month = day.replace(day=1)
        return cls(period, month, (month + timedelta(days=31)).replace(day=1))

    @property
    def name(self) -> str:
        """The end of the name of its table."""
        return f"{self.period}_{self.begins.strftime(PARTED[self.period])}"


@dataclass(frozen=True)
class PartitionedTable:
    """
    A table whose rows have a ``period`` and a time ``at``.

    Attributes:
        kept: How long the rows of each period are kept.
    """

    name: str
    kept: Mapping[str, timedelta]

    def wanted(self, now: datetime) -> Iterator[Partition]:
        """Yield the partitions of all rows that are kept at *now*, and of those to come."""
        for period in PARTED:
            part = Partition.of(period, now - self.kept[period])
            while part.begins <= now + AHEAD:
                yield part
                part = Partition.of(period, part.ends)

    def first_kept(self, period: str, now: datetime) -> datetime:
        """Return the time before which rows are deleted. Rows of a partition stay until all of them are over."""
        oldest = now - self.kept[period]
        return Partition.of(period, oldest).begins if period in PARTED and _has_partitions() else oldest

    def maintain(self, now: datetime) -> list[str]:
        """
        Create the partitions that will be needed, drop those that are no longer kept, and return the names of these.

        What does not get its lock in time, because of a long export for example, is left to the next run. A user of the
        database who does not own the table leaves all as it is. Rows are in the default partition then.
        """
        dropped: list[str] = []
        if not _has_partitions():
            return dropped
        try:
            self._maintain(now, dropped)
        except ProgrammingError as exc:
            if getattr(exc.__cause__, "sqlstate", "") != NO_RIGHT:
                raise
            logger.warning("The partitions of %s were not changed, so rows are deleted one by one: %s", self.name, exc)
        return dropped

    def _maintain(self, now: datetime, dropped: list[str]) -> None:
        present = self._present()
        for part in self.wanted(now):
            if part.name not in present:
                with _briefly(f"{self.name}_{part.name}"):
                    self.create(part)
        for part in filter(None, map(_partition_of, sorted(present))):
            if not self._is_over(part, now):
                continue
            with _briefly(f"{self.name}_{part.name}"):
                _execute(f"DROP TABLE IF EXISTS {self.name}_{part.name}")
                dropped.append(part.name)

    def held_up(self, now: datetime) -> list[Partition]:
        """
        Return the partitions that are over and that a later run will drop, because this one did not get their locks.

        Without those that this user of the database cannot drop.
        """
        if not _has_partitions() or not self._is_own():
            return []
        parts = map(_partition_of, sorted(self._present()))
        return [part for part in parts if part is not None and self._is_over(part, now)]

    def create(self, part: Partition) -> None:
        """Create a partition, and move the rows into it that the default partition has in its place."""
        name, parent = f"{self.name}_{part.name}", f"{self.name}_{part.period}"
        # The time zone of the session does not matter, as these have their own.
        begins, ends = f"'{part.begins.isoformat()}'", f"'{part.ends.isoformat()}'"
        # A drain must not write rows meanwhile that would stay behind. An exclusive lock from the start, because to ask
        # for it later could be a deadlock.
        _execute(f"LOCK TABLE {parent} IN ACCESS EXCLUSIVE MODE")
        if part.name in self._present():
            return  # another run of the task was faster
        _execute(f"CREATE TABLE {name} (LIKE {self.name} INCLUDING DEFAULTS) WITH (fillfactor = {FILLFACTOR})")
        _execute(
            f"WITH moved AS (DELETE FROM {parent}_other WHERE at >= {begins} AND at < {ends} RETURNING *) "
            f"INSERT INTO {name} SELECT * FROM moved"
        )
        _execute(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES FROM ({begins}) TO ({ends})")

    def create_all(self, now: datetime) -> None:
        """Create the partitions of a table that has none, all of them empty."""
        _execute(f"CREATE TABLE {self.name}_other PARTITION OF {self.name} DEFAULT")  # of periods that nobody knows yet
        for period in self.kept:
            name = f"{self.name}_{period}"
            of_period = f"CREATE TABLE {name} PARTITION OF {self.name} FOR VALUES IN ('{period}')"
            if period not in PARTED:
                _execute(f"{of_period} WITH (fillfactor = {FILLFACTOR})")
                continue
            _execute(f"{of_period} PARTITION BY RANGE (at)")
            _execute(f"CREATE TABLE {name}_other PARTITION OF {name} DEFAULT WITH (fillfactor = {FILLFACTOR})")
        for part in self.wanted(now):
            self.create(part)

    def _present(self) -> set[str]:
        """Return the ends of the names of its partitions, or of none if it is a plain table."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE isleaf", [self.name])
            return {name.removeprefix(f"{self.name}_") for (name,) in cursor.fetchall()}

    def _is_own(self) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = %s::regclass", [self.name])
            return bool(cursor.fetchone()[0])

    def _is_over(self, part: Partition, now: datetime) -> bool:
        """Return whether all rows of a partition are older than those that are kept."""
        return part.ends <= now - self.kept[part.period]


def _partition_of(name: str) -> Partition | None:
    """Return the partition with this end of its table's name. None: that of another period, or the default one."""
    period, _, beginning = name.partition("_")
    with suppress(KeyError, ValueError):
        return Partition.of(period, datetime.strptime(beginning, PARTED[period]).replace(tzinfo=UTC))
    return None


def _has_partitions() -> bool:
    return connection.vendor == "postgresql"


@contextmanager
def _briefly(name: str) -> Iterator[None]:
    """Run the block in a transaction that gives up, with a line in the log, if locks come late or it is suspended."""
    try:
        with bounded(LOCK_TIMEOUT_MS):
            yield
    except (OperationalError, InternalError) as exc:
        logger.warning("The partition %s was not changed, the next run tries again: %s", name, exc)


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
