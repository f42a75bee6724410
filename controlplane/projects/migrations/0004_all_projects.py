"""Make it a column whether a management key works for every project. The absence of projects said so before."""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

ACTION = "managementkey.limit"
REASON = "A management key without projects is no longer a key of all projects."
REVOKED = "The former version takes a management key without projects for a key of all projects."


def mark_the_global_keys(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """
    Mark as global only the keys whose creation was audited without projects, and print and audit all others.

    A key without projects may have lost them by a deletion, so the absence of projects proves nothing.
    """
    for key in apps.get_model("projects", "ManagementKey").objects.order_by("created_at", "pk"):
        projects = [project.slug for project in key.projects.order_by("slug")]
        if not projects and _was_created_without_projects(apps, key.pk):
            key.all_projects = True
            key.save(update_fields=["all_projects"])
        else:
            _tell(apps, key, projects)


def _was_created_without_projects(apps: StateApps, pk: str) -> bool:
    entries = apps.get_model("policies", "AuditEntry").objects
    records = entries.filter(object_type="managementkey", object_id=pk, action="managementkey.create")
    created = list(records.values_list("after", flat=True))
    return bool(created) and all(record is not None and record.get("projects") == [] for record in created)


def _tell(apps: StateApps, key: models.Model, projects: list[str]) -> None:
    reach = f"limited to {', '.join(projects)}" if projects else "limited to no project, so REST refuses it"
    before = _record(key, projects)
    _audit(apps, key, ACTION, reach, before, {**before, "all_projects": False}, REASON)


def _audit(apps: StateApps, key: models.Model, action: str, deed: str, before: dict, after: dict, reason: str) -> None:
    print(f"\n  The management key {key.name!r} ({key.prefix}…, {key.pk}) is {deed}.", end="")
    apps.get_model("policies", "AuditEntry").objects.create(
        actor="migrate",
        channel="command",
        action=action,
        object_type="managementkey",
        object_id=key.pk,
        object_label=f"{key.name} ({key.prefix}…)"[:300],
        before=before,
        after=after,
        reason=reason,
    )


def _record(key: models.Model, projects: list[str]) -> dict:
    return {"id": key.pk, "name": key.name, "prefix": key.prefix, "scopes": key.scopes, "projects": projects}


def revoke_what_would_widen(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Revoke the limited keys that have no projects, because the former version takes them for keys of all projects."""
    keys = apps.get_model("projects", "ManagementKey").objects
    for key in keys.filter(all_projects=False, projects=None, revoked_at=None).order_by("created_at", "pk"):
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])
        before = _record(key, [])
        after = {**before, "revoked_at": key.revoked_at.isoformat()}
        _audit(apps, key, "managementkey.revoke", "revoked", {**before, "revoked_at": None}, after, REVOKED)


class Migration(migrations.Migration):
    dependencies = [
        ("policies", "0003_help_texts"),
        ("projects", "0003_help_texts"),
    ]

    operations = [
        migrations.AddField(
            model_name="managementkey",
            name="all_projects",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Whether the key works for every project, also for those that are created later.",
            ),
        ),
        migrations.AlterField(
            model_name="managementkey",
            name="projects",
            field=models.ManyToManyField(
                blank=True,
                help_text="The projects for which the key works. If they are deleted, it works for none.",
                to="projects.project",
            ),
        ),
        migrations.RunPython(mark_the_global_keys, revoke_what_would_widen),
    ]
