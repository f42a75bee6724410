"""The sums of policies and of projects, of the usage that is kept."""

from datetime import timedelta

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

FILL = """
    INSERT INTO usage_decisioncount (period, at, policy_id, project_id, allowed, denied, would_deny)
    SELECT period, at, policy_id, project_id, SUM(allowed), SUM(denied), SUM(would_deny)
    FROM usage_usagerow
    WHERE {rows} AND period = %s AND at >= %s
    GROUP BY period, at, policy_id, project_id
"""
OF_POLICIES = "policy_id <> ''"
OF_PROJECTS = "policy_id = '' AND limit_name = ''"
MINUTES, HOURS, DAYS = timedelta(hours=2), timedelta(days=15), timedelta(days=730)
FILLS = (
    *((OF_POLICIES, "minute", MINUTES), (OF_POLICIES, "day", DAYS)),
    *((OF_PROJECTS, "minute", MINUTES), (OF_PROJECTS, "hour", HOURS), (OF_PROJECTS, "day", DAYS)),
)


def fill(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    now = timezone.now()
    with schema_editor.connection.cursor() as cursor:
        for rows, period, kept in FILLS:
            cursor.execute(FILL.format(rows=rows), [period, now - kept])


def empty(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("usage", "DecisionCount").objects.all().delete()


class Migration(migrations.Migration):
    dependencies = [("usage", "0003_partitions")]

    operations = [migrations.RunPython(fill, empty)]
