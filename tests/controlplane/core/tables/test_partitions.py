"""Partitions of usage by time: made ahead, filled by late rows too, and dropped."""

import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from controlplane.core.tables.partitions import Partition, PartitionedTable
from controlplane.core.transactions import bounded
from controlplane.traffic.reports import erasing
from controlplane.traffic.stream.batches import Row
from controlplane.traffic.usage import rollup, tasks
from controlplane.traffic.usage.models import UsageBatch, UsageRow
from tests.controlplane.forks import wait_until_stopped
from tests.factories import UsageRowFactory

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL has partitions"),
]

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TABLE = rollup.tables()[UsageRow]
NAMES = ("proj_1", "tok_1", "", "", "requests")


@pytest.fixture
def midnight() -> datetime:
    return timezone.now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture(autouse=True)
def as_made_by_the_migration():
    """Partitions outlive a test, and others prune at times that are far ahead. So they are made again."""
    _make_again()
    yield
    _make_again()


def _make_again() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM usage_usagerow")
        for name in TABLE._present():
            if name.startswith(("minute_2", "hour_2")):
                cursor.execute(f"DROP TABLE usage_usagerow_{name}")
    TABLE.maintain(timezone.now())


def placed() -> list[tuple[str, int]]:
    """Return the end of the name of the partition of each row, and what it counts, by time."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text, allowed FROM usage_usagerow ORDER BY at, allowed")
        return [(name.removeprefix("usage_usagerow_"), allowed) for name, allowed in cursor.fetchall()]


def day_of(at: datetime) -> str:
    return f"minute_{at:%Y%m%d}"


def test_the_minute_of_midnight_belongs_to_the_day_that_begins(midnight):
    for at, allowed in ((midnight - MINUTE, 1), (midnight, 2)):
        UsageRowFactory(at=at, allowed=allowed)

    assert placed() == [(day_of(midnight - DAY), 1), (day_of(midnight), 2)]


@pytest.mark.parametrize(
    ("begins", "ends"), [((2026, 12, 1), (2027, 1, 1)), ((2028, 2, 1), (2028, 3, 1)), ((2026, 1, 1), (2026, 2, 1))]
)
def test_months_end_where_the_next_one_begins(begins, ends):
    begins, ends = (datetime(*day, tzinfo=UTC) for day in (begins, ends))

    assert Partition.of("hour", begins) == Partition.of("hour", ends - HOUR) == Partition("hour", begins, ends)


def test_rows_of_any_time_are_counted(midnight):
    """An hour ahead, late by a day, and so late that only an hour or a day is kept of them."""
    late = [midnight + DAY + HOUR, midnight - DAY, midnight - 5 * DAY, midnight - 400 * DAY]

    for _ in range(2):
        rollup.add([Row(at, NAMES, (1, 0, 0, 1)) for at in late], midnight + 12 * HOUR)

    by_period = {period: UsageRow.objects.filter(period=period).count() for period in ("minute", "hour", "day")}
    assert by_period == {"minute": 2, "hour": 3, "day": 4}
    assert set(UsageRow.objects.values_list("allowed", flat=True)) == {2}


def test_a_partition_takes_over_the_rows_that_came_before_it(midnight):
    """As after days without a worker, whose first drain comes before the task that makes partitions."""
    ahead = midnight + 9 * DAY
    UsageRowFactory(at=ahead - MINUTE, allowed=1)
    UsageRowFactory(at=ahead, allowed=2)
    assert [name for name, _ in placed()] == ["minute_other", "minute_other"]

    rollup.prune(ahead + HOUR)
    UsageRowFactory(at=ahead + MINUTE, allowed=3)

    assert placed() == [(day_of(ahead - DAY), 1), (day_of(ahead), 2), (day_of(ahead), 3)]


def test_days_that_are_over_are_dropped(midnight):
    """Rows are not deleted one by one: the space of a partition is free at once."""
    for back in range(3):
        UsageRowFactory(at=midnight - back * DAY)
    UsageRowFactory(period="hour", at=midnight - 2 * DAY)

    assert TABLE.maintain(midnight + DAY + HOUR) == [day_of(midnight - 2 * DAY)]
    assert TABLE.maintain(midnight + DAY + HOUR) == []
    assert sorted(UsageRow.objects.values_list("period", flat=True)) == ["hour", "minute", "minute"]


def test_a_worker_whose_clock_is_ahead_drops_no_day_that_is_kept(midnight, monkeypatch):
    """What is dropped too early is lost. The next run drops it."""
    now = timezone.now()
    UsageRowFactory(at=midnight - DAY)
    UsageBatch.objects.create(batch_id="b", received_at=now - 6 * DAY)
    monkeypatch.setattr(timezone, "now", lambda: now + 3 * DAY)

    assert tasks.prune() == 0
    assert (UsageRow.objects.count(), UsageBatch.objects.count()) == (1, 1)


def test_rows_in_the_default_partition_are_deleted(midnight):
    old = midnight - 30 * DAY
    UsageRowFactory(at=old)
    UsageRowFactory(period="hour", at=midnight - 900 * DAY)

    assert rollup.prune(midnight) == 2
    assert not UsageRow.objects.exists()


def test_a_reader_that_takes_long_delays_a_partition_only(midnight, caplog, monkeypatch):
    """The next run tries again, and nobody waits behind it for more than two seconds."""
    monkeypatch.setattr("controlplane.core.tables.partitions.LOCK_TIMEOUT_MS", 50)
    UsageRowFactory(at=midnight - 2 * DAY)
    reader = connection.copy()
    try:
        reader.set_autocommit(False)
        with reader.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM usage_usagerow")
        assert rollup.prune(midnight + DAY + HOUR) == 0  # to delete its rows one by one would take hours
        reader.rollback()
    finally:
        reader.close()

    assert "was not changed" in caplog.text
    assert TABLE.maintain(midnight + DAY + HOUR) == [day_of(midnight - 2 * DAY)]


IS_SUSPENDED_WITH_THE_LOCK = """
import os, signal
from datetime import timedelta
from django.utils import timezone
from controlplane.core import transactions
from controlplane.core.tables import partitions
from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.models import UsageRow
transactions.IDLE_MS = 300
execute = partitions._execute

def suspended(statement):
    execute(statement)
    if statement.startswith("LOCK TABLE"):
        partitions._execute = execute
        os.kill(os.getpid(), signal.SIGSTOP)

partitions._execute = suspended
rollup.tables()[UsageRow].maintain(timezone.now() + timedelta(days=1))
"""


def test_a_task_that_is_suspended_holds_up_no_usage(midnight, run_python):
    """The next run makes the partition."""
    suspended = run_python(IS_SUSPENDED_WITH_THE_LOCK)
    wait_until_stopped(suspended)

    with bounded():
        rollup.add([Row(midnight, NAMES, (1, 0, 0, 0))], midnight)
    suspended.send_signal(signal.SIGCONT)

    assert suspended.wait() == 0
    assert day_of(midnight + 4 * DAY) not in TABLE._present()
    TABLE.maintain(midnight + DAY)
    assert day_of(midnight + 4 * DAY) in TABLE._present()


def test_two_runs_at_once_make_and_drop_each_partition_once(midnight, monkeypatch):
    """A task may run twice at the same time. The second one has read what is there before the first has changed it."""
    UsageRowFactory(at=midnight - 2 * DAY)
    present, others = PartitionedTable._present, []

    def overtaken(table: PartitionedTable) -> set[str]:
        found = present(table)
        if not others:
            others.append(table)
            table.maintain(midnight + DAY + HOUR)
        return found

    monkeypatch.setattr(PartitionedTable, "_present", overtaken)
    TABLE.maintain(midnight + DAY + HOUR)

    assert {day_of(midnight - 2 * DAY), day_of(midnight + 4 * DAY)} & present(TABLE) == {day_of(midnight + 4 * DAY)}


def test_a_deleted_project_is_erased_from_all_partitions(midnight):
    for at, period in ((midnight, "minute"), (midnight - 30 * DAY, "minute"), (midnight, "hour"), (midnight, "day")):
        UsageRowFactory(at=at, period=period, project_id="proj_gone")
    UsageRowFactory(at=midnight, project_id="proj_1")

    assert erasing.erase("proj_gone")[0]["usagerow"] == 4
    assert UsageRow.objects.get().project_id == "proj_1"


def test_an_upgrade_keeps_the_rows_and_their_ids(midnight, latest):
    """Back and forth, on tables with rows; what no later release would show is left behind."""
    migrate("0002_checkpoints")
    plain = [earlier_row(at=midnight - back * DAY, allowed=back) for back in range(3)]
    gone = earlier_row(at=midnight - 9 * DAY)
    plain.append(earlier_row(at=midnight - 9 * DAY, period="day"))

    migrate("0003_partitions")

    assert set(UsageRow.objects.values_list("pk", "at")) == {
        (row.pk, row.at) for row in plain if row.at > midnight - 2 * DAY or row.period == "day"
    }
    assert earlier_row(at=midnight, token_id="tok_new").pk > gone.pk
    assert placed()[-1][0] == day_of(midnight)
    assert default_of_calls()


def earlier_row(**fields: Any) -> Any:
    """Create a row of usage with the columns that it had before the upgrade."""
    state = MigrationExecutor(connection).loader.project_state(("usage", "0002_checkpoints"))
    row = state.apps.get_model("usage", "UsageRow")
    return row.objects.create(**{"period": "minute", "project_id": "proj_1", "unit": "requests"} | fields)


def default_of_calls() -> str | None:
    """Return the default of a column that an earlier version does not know."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_default FROM information_schema.columns "
            "WHERE table_name = 'usage_meteredrow' AND column_name = 'calls'"
        )
        return cursor.fetchone()[0]


@pytest.fixture
def latest():
    """Other tests find the tables of the last migration again."""
    yield
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes())


def migrate(name: str) -> None:
    executor = MigrationExecutor(connection)
    executor.migrate([("usage", name)])


@pytest.fixture
def not_the_owner():
    """A user of the database who may write all rows and owns no table, as "Audit" in operating.md advises."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE not_the_owner")
        for what in ("TABLES", "SEQUENCES"):
            cursor.execute(f"GRANT ALL ON ALL {what} IN SCHEMA public TO not_the_owner")
        cursor.execute("SET ROLE not_the_owner")
        yield
        cursor.execute("RESET ROLE")
        cursor.execute("DROP OWNED BY not_the_owner")
        cursor.execute("DROP ROLE not_the_owner")


def test_a_user_who_does_not_own_the_table_deletes_rows(midnight, not_the_owner, caplog):
    """One by one, and what is pruned after them goes too. Nobody loses a row that comes after the last partition."""
    for back in range(4):
        UsageRowFactory(at=midnight - back * DAY)
    UsageBatch.objects.create(batch_id="b", received_at=midnight - 9 * DAY)

    assert rollup.prune(midnight + 5 * DAY + HOUR) == 5
    UsageRowFactory(at=midnight + 5 * DAY + HOUR)

    assert placed() == [("minute_other", 1)]
    assert "were not changed, so rows are deleted one by one" in caplog.text
