"""The sums of policies, filled from the usage that is kept."""

from datetime import timedelta
from typing import Any

from django.db import migrations, models
from django.utils import timezone

FILL = """
    INSERT INTO usage_policycount (period, at, policy_id, project_id, allowed, denied, would_deny)
    SELECT period, at, policy_id, project_id, SUM(allowed), SUM(denied), SUM(would_deny)
    FROM usage_usagerow
    WHERE policy_id <> '' AND period = %s AND at >= %s
    GROUP BY period, at, policy_id, project_id
"""
KEPT = {"minute": timedelta(hours=2), "day": timedelta(days=730)}


def fill(apps: Any, schema_editor: Any) -> None:
    now = timezone.now()
    with schema_editor.connection.cursor() as cursor:
        for period, kept in KEPT.items():
            cursor.execute(FILL, [period, now - kept])


class Migration(migrations.Migration):
    dependencies = [("usage", "0010_overview")]

    operations = [
        migrations.CreateModel(
            name="PolicyCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("period", models.CharField(choices=[("minute", "minute"), ("day", "day")], max_length=6)),
                ("at", models.DateTimeField()),
                ("policy_id", models.CharField(max_length=40)),
                ("project_id", models.CharField(max_length=40)),
                ("allowed", models.BigIntegerField(default=0)),
                ("denied", models.BigIntegerField(default=0)),
                ("would_deny", models.BigIntegerField(default=0)),
            ],
            options={
                "indexes": [models.Index(fields=["policy_id", "period", "at"], name="usage_policy_period")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("period", "at", "policy_id", "project_id"), name="usage_policy_once_a_key"
                    )
                ],
            },
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
