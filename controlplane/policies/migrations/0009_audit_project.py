from collections import defaultdict
from itertools import batched

from django.db import migrations, models

AT_ONCE = 1000


def name_projects(apps, schema_editor):
    """Give each entry of before the project that it belongs to, as far as the entry and the present rows say."""
    alias = schema_editor.connection.alias
    entries = apps.get_model("policies", "AuditEntry").objects.using(alias)
    policies = dict(apps.get_model("policies", "Policy").objects.using(alias).values_list("pk", "project_id"))
    tokens = apps.get_model("projects", "Token").objects.using(alias)
    columns = ("pk", "object_type", "object_id", "before", "after")
    rows = entries.order_by().values_list(*columns).iterator(chunk_size=AT_ONCE)
    found = ((pk, project_of(*entry, policies, tokens)) for pk, *entry in rows)
    for some in batched([(pk, project) for pk, project in found if project], AT_ONCE):
        by_project = defaultdict(list)
        for pk, project in some:
            by_project[project].append(pk)
        for project, keys in by_project.items():
            entries.filter(pk__in=keys).update(project=project)


def project_of(kind, object_id, before, after, policies, tokens):
    """Return the id of the project of an entry, or None if it has none or nothing says which."""
    record = after or before or {}
    if kind == "project":
        return object_id
    if kind in ("token", "policy", "reservation"):
        # The record of a reset names only the limit.
        known = record.get("project")
        return known or (kind == "token" and tokens.filter(pk=object_id).values_list("project_id", flat=True).first())
    if kind == "limit":
        return policies.get(record.get("policy"))
    if kind == "override":
        token = record.get("token")
        project = record.get("project")
        return project or (token and tokens.filter(pk=token).values_list("project_id", flat=True).first())
    return None


class Migration(migrations.Migration):
    dependencies = [("policies", "0008_rollover"), ("projects", "0006_labels")]

    operations = [
        migrations.AddField(
            model_name="auditentry",
            name="project",
            field=models.CharField(blank=True, db_default="", default="", editable=False, max_length=40),
        ),
        migrations.AddIndex(
            model_name="auditentry",
            index=models.Index(fields=["project", "-at", "-id"], name="policies_audit_project"),
        ),
        migrations.RunPython(name_projects, migrations.RunPython.noop),
    ]
