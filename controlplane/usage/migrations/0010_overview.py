"""Indexes for the Overview, which sums up the decisions and finds the most denials."""

from django.db import migrations, models


class Migration(migrations.Migration):
    # Not concurrently, which PostgreSQL refuses for a table with partitions. They take less time than their copy.
    dependencies = [("usage", "0009_partitions")]

    operations = [
        migrations.AddIndex(
            model_name="usagerow",
            index=models.Index(
                condition=models.Q(("limit_name", ""), ("policy_id", "")),
                fields=["period", "at"],
                name="usage_row_decisions",
            ),
        ),
        migrations.AddIndex(
            model_name="usagerow",
            index=models.Index(
                condition=models.Q(("denied__gt", 0)), fields=["period", "at"], name="usage_row_denials"
            ),
        ),
    ]
