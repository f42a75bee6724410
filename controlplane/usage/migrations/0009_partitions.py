from datetime import timedelta

from django.db import migrations

from controlplane.lists.partitioning import partition

KEPT = {"minute": timedelta(hours=48), "hour": timedelta(days=90), "day": timedelta(days=730)}


class Migration(migrations.Migration):
    """
    Give the tables of usage partitions on PostgreSQL, so that old rows are dropped with their day.

    It copies all rows while drains and readers wait. "Upgrade" in operating.md says how long.
    """

    dependencies = [
        ("usage", "0008_calls"),
    ]

    operations = [partition("usage", name, KEPT) for name in ("UsageRow", "MeteredRow")]
