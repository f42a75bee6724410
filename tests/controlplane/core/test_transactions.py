"""Rows are deleted in pieces, and one that somebody has locked holds up no other."""

import threading
from datetime import UTC, datetime

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from controlplane.core import transactions
from controlplane.core.transactions import RowsLeft, delete_in_pieces, snapshot
from controlplane.objects.projects.models import Project
from controlplane.traffic.usage.models import UsageBatch, UsageRow
from tests.factories import ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)
OLD = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def locked(monkeypatch):
    """``locked(row)`` locks a row until the test ends, and each wait for it takes a twentieth of a second."""
    if connection.vendor != "postgresql":
        pytest.skip("needs PostgreSQL, which locks rows: run `python -m tests.postgres`")
    monkeypatch.setattr(transactions, "LOCK_WAIT_MS", 50)
    ends, holders = threading.Event(), []

    def lock(row) -> None:
        has_it = threading.Event()

        def hold() -> None:
            try:
                with transaction.atomic():
                    type(row).objects.select_for_update().get(pk=row.pk)
                    has_it.set()
                    ends.wait(60)
            finally:
                connection.close()

        holders.append(threading.Thread(target=hold))
        holders[-1].start()
        assert has_it.wait(30)

    yield lock
    ends.set()
    for holder in holders:
        holder.join()


def test_a_locked_row_holds_up_no_other_deletion(locked):
    """It was waited for again and again before, in front of all others."""
    rows = [UsageBatch.objects.create(batch_id=str(number), received_at=OLD) for number in range(5)]
    locked(rows[0])

    with pytest.raises(RowsLeft, match="stay, because they are locked") as refused:
        delete_in_pieces(UsageBatch.objects.order_by("pk"), 2)

    assert refused.value.deleted == 4
    assert list(UsageBatch.objects.all()) == rows[:1]


def test_erasing_says_what_stays(locked, call, key):
    """It tells the person to repeat the command, and the audit has what was deleted."""
    project = ProjectFactory(slug="gone")
    call("DELETE", "projects/gone", key=key)
    rows = [UsageRowFactory(project_id=project.pk, token_id=token) for token in ("tok_1", "tok_2")]
    locked(rows[0])

    with pytest.raises(CommandError, match=r"are locked\. Repeat the command\."):
        call_command("erase_project", project.pk, reason="law")

    assert list(UsageRow.objects.filter(project_id=project.pk)) == rows[:1]


def test_a_snapshot_may_be_the_first_use_of_a_connection():
    """As in a thread or a process that has just begun."""
    seen = []

    def first():
        try:
            with snapshot():
                seen.append(Project.objects.count())
        finally:
            connection.close()

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()

    assert seen == [0]
