from django.db import migrations

from controlplane.lists.partitioning import leave_room


class Migration(migrations.Migration):
    """Leave room in the pages of PostgreSQL, because most rows grow with each drain."""

    dependencies = [
        ("preview", "0001_initial"),
    ]

    operations = [leave_room("preview_recordedminute")]
