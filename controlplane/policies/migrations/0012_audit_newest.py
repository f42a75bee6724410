"""An index for the order of the audit, created while other programs write."""

from django.db import migrations, models

from controlplane.lists import indexing


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("policies", "0011_audit_search")]

    operations = [
        indexing.AddIndex(
            model_name="auditentry",
            index=models.Index(fields=["-at", "-id"], name="policies_audit_newest"),
        ),
    ]
