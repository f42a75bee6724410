"""The activity of the tokens of a minute, for those who are near a limit."""

from django.db import migrations, models


class Migration(migrations.Migration):
    # Not concurrently, which PostgreSQL refuses for a table with partitions.
    dependencies = [("usage", "0012_decisioncount")]

    operations = [
        migrations.AddField(
            model_name="usagerow",
            name="activity",
            field=models.SmallIntegerField(db_default=0, default=0, editable=False),
        ),
        migrations.AddIndex(
            model_name="usagerow",
            index=models.Index(
                condition=models.Q(("limit_name", ""), ("policy_id", "")),
                fields=["period", "at", "activity", "id"],
                name="usage_row_activity",
            ),
        ),
        migrations.RemoveIndex(model_name="usagerow", name="usage_row_decisions"),
    ]
