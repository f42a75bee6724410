from django.db import migrations

from controlplane.lists.partitioning import leave_room


class Migration(migrations.Migration):
    """Leave room in the pages of PostgreSQL, because most rows grow with each drain."""

    dependencies = [
        ("statements", "0002_months_of_days"),
    ]

    operations = [leave_room("statements_monthrow"), leave_room("statements_monthmetered")]
