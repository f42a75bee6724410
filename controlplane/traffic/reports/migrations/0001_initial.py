from itertools import batched

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models import Sum
from django.db.models.functions import TruncMonth

from controlplane.core.tables.partitioning import leave_room

COUNTS = ("allowed", "denied", "would_deny", "cost")
KEY = ("project_id", "token_id", "policy_id", "limit_name", "unit")
AT_ONCE = 1000


def fill(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """
    Add up the days of 0.2 to months.

    It is exact, because days and the months of all projects are in UTC before this release.
    """
    days = apps.get_model("usage", "UsageRow").objects.filter(period="day").order_by()
    sums = days.annotate(month=TruncMonth("at")).values("month", *KEY)
    sums = sums.annotate(**{f"sum_{count}": Sum(count) for count in COUNTS})
    month = apps.get_model("statements", "MonthRow")
    for some in batched(sums.iterator(chunk_size=AT_ONCE), AT_ONCE):
        rows = ({name.removeprefix("sum_"): value for name, value in row.items()} for row in some)
        month.objects.bulk_create([month(**{**row, "month": row["month"].date()}) for row in rows])


class Migration(migrations.Migration):
    initial = True

    dependencies = [("usage", "0002_checkpoints")]

    operations = [
        migrations.CreateModel(
            name="MonthMetered",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("month", models.DateField()),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("model", models.CharField(blank=True, max_length=128)),
                ("correction", models.CharField(blank=True, max_length=10)),
                ("requests", models.BigIntegerField(default=0)),
                ("input", models.BigIntegerField(default=0)),
                ("cached_input", models.BigIntegerField(default=0)),
                ("cache_write", models.BigIntegerField(default=0)),
                ("output", models.BigIntegerField(default=0)),
                ("micros", models.BigIntegerField(default=0)),
                ("calls", models.BigIntegerField(default=0)),
            ],
            options={
                "ordering": ["month", "id"],
                "indexes": [
                    models.Index(fields=["project_id", "month"], name="statements_metered_project"),
                    models.Index(fields=["token_id", "month"], name="statements_metered_token"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("month", "project_id", "token_id", "model", "correction"),
                        name="statements_metered_once_a_key",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="MonthRow",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("month", models.DateField()),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("policy_id", models.CharField(blank=True, max_length=40)),
                ("limit_name", models.CharField(blank=True, max_length=64)),
                ("unit", models.CharField(max_length=64)),
                ("correction", models.CharField(blank=True, max_length=10)),
                ("allowed", models.BigIntegerField(default=0)),
                ("denied", models.BigIntegerField(default=0)),
                ("would_deny", models.BigIntegerField(default=0)),
                ("cost", models.BigIntegerField(default=0)),
            ],
            options={
                "verbose_name": "statement",
                "ordering": ["month", "id"],
                "indexes": [
                    models.Index(fields=["project_id", "month"], name="statements_month_project"),
                    models.Index(fields=["token_id", "month"], name="statements_month_token"),
                    models.Index(fields=["policy_id", "month"], name="statements_month_policy"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("month", "project_id", "token_id", "policy_id", "limit_name", "unit", "correction"),
                        name="statements_month_once_a_key",
                    )
                ],
            },
        ),
        # Most rows grow with each drain.
        leave_room("statements_monthrow"),
        leave_room("statements_monthmetered"),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
