"""The sums of projects beside those of policies, filled from the usage that is kept."""

from datetime import timedelta
from typing import Any

from django.db import migrations, models
from django.utils import timezone

FILL = """
    INSERT INTO usage_decisioncount (period, at, policy_id, project_id, allowed, denied, would_deny)
    SELECT period, at, '', project_id, SUM(allowed), SUM(denied), SUM(would_deny)
    FROM usage_usagerow
    WHERE policy_id = '' AND limit_name = '' AND period = %s AND at >= %s
    GROUP BY period, at, project_id
"""
KEPT = {"minute": timedelta(hours=2), "hour": timedelta(days=15), "day": timedelta(days=730)}


def fill(apps: Any, schema_editor: Any) -> None:
    now = timezone.now()
    with schema_editor.connection.cursor() as cursor:
        for period, kept in KEPT.items():
            cursor.execute(FILL, [period, now - kept])


def empty(apps: Any, schema_editor: Any) -> None:
    apps.get_model("usage", "DecisionCount").objects.filter(policy_id="").delete()


class Migration(migrations.Migration):
    dependencies = [("usage", "0011_policycount")]

    operations = [
        migrations.RenameModel("PolicyCount", "DecisionCount"),
        migrations.AlterField(
            model_name="decisioncount",
            name="period",
            field=models.CharField(choices=[("minute", "minute"), ("hour", "hour"), ("day", "day")], max_length=6),
        ),
        migrations.AlterField(
            model_name="decisioncount", name="policy_id", field=models.CharField(blank=True, max_length=40)
        ),
        migrations.AddIndex(
            model_name="decisioncount",
            index=models.Index(
                condition=models.Q(("policy_id", "")),
                fields=["period", "at", "project_id"],
                name="usage_project_period",
            ),
        ),
        migrations.RunPython(fill, empty),
    ]
