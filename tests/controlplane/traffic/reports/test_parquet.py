"""Usage as a file of Parquet, read back by a reader that knows nothing of us."""

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db.models import Sum
from pyarrow import parquet as pq
from pyarrow import types

from controlplane.traffic.reports import parquet
from controlplane.traffic.usage.models import MeteredRow, UsageRow
from tests.controlplane.traffic.usage.conftest import NOON
from tests.factories import PolicyFactory, ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db

DAY = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def export(tmp_path):
    """``export(step="hour")``: the file of 24 November."""

    def run(**options):
        path = tmp_path / "usage.parquet"
        usual = {"from": "2026-11-24", "to": "2026-11-25T00:00Z", "output": path}
        call_command("export_usage", **{**usual, **options})
        return pq.ParquetFile(path)

    return run


def test_what_is_read_back_equals_sql(export, monkeypatch):
    """Row by row and in order, over several groups of rows."""
    monkeypatch.setattr(parquet, "ROWS_A_GROUP", 10)
    for number in range(25):
        at = DAY + timedelta(minutes=number // 2)
        UsageRowFactory(at=at, token_id=f"tok_{number}", allowed=number, cost=2**50 - number, unit="tokens")
    UsageRowFactory(at=DAY + timedelta(days=1), allowed=99)

    file = export(step="minute")

    inner = ("id", "activity")  # which say nothing to others
    names = [field.attname for field in UsageRow._meta.concrete_fields if field.attname not in inner]
    rows = UsageRow.objects.filter(at__lt=DAY + timedelta(days=1)).order_by("at", "id").values(*names)
    found = file.read().to_pylist()
    assert [{name: row[name] for name in names} for row in found] == list(rows)
    assert (file.num_row_groups, file.metadata.num_rows) == (3, 25)


def test_times_are_in_utc_and_money_is_a_decimal(export):
    """A reader needs no note beside the file."""
    project, policy = ProjectFactory(slug="chat"), PolicyFactory(slug="spend")
    ids = {"project_id": project.pk, "policy_id": policy.pk, "limit_name": "monthly"}
    UsageRowFactory(period="hour", at=NOON, cost=-1, unit="micros", **ids)
    UsageRowFactory(period="hour", at=NOON, cost=3, project_id="proj_gone")

    table = export(step="hour").read()

    at, money = (table.schema.field(name).type for name in ("at", "money"))
    assert (types.is_timestamp(at), at.tz, types.is_decimal(money)) == (True, "UTC", True)
    found = {row["project"]: row for row in table.to_pylist()}
    assert (found["chat"]["at"], found["chat"]["money"], found["chat"]["policy"]) == (
        NOON,
        Decimal("-0.000001"),
        "spend",
    )
    assert (found[""]["money"], found[""]["cost"], found[""]["project_id"]) == (None, 3, "proj_gone")
    assert table.schema.metadata[b"currency"] == b"USD"


def test_sums_of_metered_usage_are_exact(export):
    """The largest numbers that a column has, too."""
    for number, micros in enumerate((2**62, 2**62, 1)):
        row = {"model": f"gpt-{number}", "settled_as": "exact", "micros": micros, "requests": 1}
        MeteredRow.objects.create(period="day", at=DAY, project_id="proj_1", token_id="tok_1", **row)

    rows = export(table="metered").read().to_pylist()

    assert sum(row["money"] for row in rows) == (Decimal(2**63) + 1) / 1_000_000
    assert sum(row["requests"] for row in rows) == MeteredRow.objects.aggregate(n=Sum("requests"))["n"]
    assert rows[0]["approximate"] is False


def test_an_export_without_rows_is_a_file_with_columns(export):
    file = export(project="proj_gone")

    assert file.metadata.num_rows == 0
    assert file.schema_arrow.names[:3] == ["period", "at", "project_id"]


def test_a_project_is_exported_alone(export):
    UsageRowFactory(period="day", at=DAY, project_id=ProjectFactory(slug="chat").pk, allowed=7)
    UsageRowFactory(period="day", at=DAY, project_id="proj_other")

    assert [row["allowed"] for row in export(project="chat").read().to_pylist()] == [7]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"from": "yesterday"}, "--from: must be a day or a time such as 2026-11-01T13:00Z, got 'yesterday'."),
        ({"from": "0001-01-01T00:00+14:00"}, "--from: must be a day or a time such as"),
        ({"to": "9999-12-31T23:59-14:00"}, "--to: must be a day or a time such as"),
        ({"to": "2026-11-24"}, "--to: must be after --from, got 2026-11-24."),
        ({"project": "chat"}, "--project: there is no project 'chat'."),
        ({"output": Path("/nowhere/usage.parquet")}, "--output: the file could not be written"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(export, tmp_path, options, reason):
    """Nothing is written then, and an earlier file stays."""
    export()
    before = (tmp_path / "usage.parquet").read_bytes()

    with pytest.raises(CommandError) as refused:
        export(**options)

    assert str(refused.value).startswith(reason)
    assert [path.name for path in tmp_path.iterdir()] == ["usage.parquet"]
    assert (tmp_path / "usage.parquet").read_bytes() == before


def test_a_device_is_not_replaced(export, tmp_path):
    """Such as /dev/null, where the file would take its place for everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(CommandError, match="must be a file"):
        export(output=pipe)

    assert pipe.is_fifo()
