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
    for some in batched(rows, AT_ONCE):
        # By one query, because others who write to the audit wait for the end.
        named = {name for _, *entry in some if (name := token_of(*entry))}
        projects = dict(tokens.filter(pk__in=named).values_list("pk", "project_id"))
        by_project = defaultdict(list)
        for pk, *entry in some:
            if project := project_of(*entry, policies, projects):
                by_project[project].append(pk)
        for project, keys in by_project.items():
            entries.filter(pk__in=keys).update(project=project)


def token_of(kind, object_id, before, after):
    """Return the id of the token that an entry is about, or None."""
    return object_id if kind == "token" else (after or before or {}).get("token")


def project_of(kind, object_id, before, after, policies, projects):
    """
    Return the id of the project of an entry, or None if it has none or nothing says which.

    Args:
        policies: The id of the project of each policy, by the id of the policy.
        projects: The same of the tokens that the entries are about.
    """
    record = after or before or {}
    if kind == "project":
        return object_id
    if kind in ("token", "policy", "reservation"):
        # The record of a reset names only the limit.
        known = record.get("project")
        return known or (kind == "token" and projects.get(object_id))
    if kind == "limit":
        return policies.get(record.get("policy"))
    if kind == "override":
        return record.get("project") or projects.get(record.get("token"))
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
