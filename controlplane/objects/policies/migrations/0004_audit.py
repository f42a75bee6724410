"""The project of each audit entry, and the indexes of the audit, made while other programs write."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from controlplane.core.tables import indexing

AT_ONCE = 1000


def name_projects(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Give each entry of before the project that it belongs to, as far as the entry and the present rows say."""
    alias = schema_editor.connection.alias
    entries = apps.get_model("policies", "AuditEntry").objects.using(alias).order_by("pk")
    policies = dict(apps.get_model("policies", "Policy").objects.using(alias).values_list("pk", "project_id"))
    tokens = apps.get_model("projects", "Token").objects.using(alias)
    last, columns = "", ("pk", "object_type", "object_id", "before", "after")
    while some := list(entries.filter(pk__gt=last).values_list(*columns)[:AT_ONCE]):
        named = {name for _, *entry in some if (name := token_of(*entry))}
        projects = dict(tokens.filter(pk__in=named).values_list("pk", "project_id"))
        by_project = defaultdict(list)
        for last, kind, object_id, before, after in some:
            if project := project_of(kind, object_id, before, after, policies, projects):
                by_project[project].append(last)
        for project, keys in by_project.items():
            entries.filter(pk__in=keys, project="").update(project=project)


def token_of(kind: str, object_id: str, before: Any, after: Any) -> Any:
    """Return the id of the token that an entry is about, or None."""
    return object_id if kind == "token" else (after or before or {}).get("token")


def project_of(
    kind: str, object_id: str, before: Any, after: Any, policies: Mapping[str, str], projects: Mapping[str, str]
) -> Any:
    """
    Return the id of the project of an entry, or None if it has none or nothing says which.

    Args:
        policies: The id of the project of each policy, by the id of the policy.
        projects: The same of the tokens that the entries are about.
    """
    record = after or before or {}
    if kind == "project":
        return object_id
    if kind in ("token", "policy"):
        # The record of a reset names only the limit.
        known = record.get("project")
        return known or (kind == "token" and projects.get(object_id))
    if kind == "limit":
        return policies.get(record.get("policy", ""))
    if kind == "override":
        return record.get("project") or projects.get(record.get("token", ""))
    return None


def added(name: str, fields: list[str], condition: models.Q | None = None) -> indexing.AddIndex:
    index = models.Index(fields=fields, name=name, condition=condition)
    return indexing.AddIndex(model_name="auditentry", index=index)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("policies", "0003_columns"), ("projects", "0003_columns")]

    operations = [
        migrations.RunPython(name_projects, migrations.RunPython.noop),
        added("policies_audit_actor", ["actor", "-id"]),
        added("policies_audit_action", ["action", "-id"]),
        added("policies_audit_object", ["object_id", "-id"]),
        added("policies_audit_request", ["request_id"], condition=models.Q(("request_id", ""), _negated=True)),
        added("policies_audit_project", ["project", "-at", "-id"]),
        indexing.Searched("policies_auditentry", ("actor", "action", "object_label"), ("reason",)).operation(),
    ]
