"""Indexes for the search of the audit, created while other programs write."""

from django.db import migrations, models

from controlplane.lists import indexing


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("policies", "0010_overrides_kept")]

    operations = [
        indexing.AddIndex(
            model_name="auditentry",
            index=models.Index(
                condition=models.Q(("request_id", ""), _negated=True),
                fields=["request_id"],
                name="policies_audit_request",
            ),
        ),
        indexing.Searched("policies_auditentry", ("actor", "action", "object_label"), ("reason",)).operation(),
    ]
