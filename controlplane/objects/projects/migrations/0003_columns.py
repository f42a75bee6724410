"""What a project, a token and a management key have since 0.2. Whether a key works for all projects is a column."""

from typing import Protocol

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.utils import timezone

import controlplane.core.text
import controlplane.core.zones

ACTION = "managementkey.limit"
REASON = "A management key without projects is no longer a key of all projects."
REVOKED = "The former version takes a management key without projects for a key of all projects."


class _Key(Protocol):
    pk: str
    name: str
    prefix: str
    scopes: list[str]


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


def _tell(apps: StateApps, key: _Key, projects: list[str]) -> None:
    reach = f"limited to {', '.join(projects)}" if projects else "limited to no project, so REST refuses it"
    before = _record(key, projects)
    _audit(apps, key, ACTION, reach, before, {**before, "all_projects": False}, REASON)


def _audit(apps: StateApps, key: _Key, action: str, deed: str, before: dict, after: dict, reason: str) -> None:
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


def _record(key: _Key, projects: list[str]) -> dict:
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
        ("policies", "0003_columns"),
        ("projects", "0002_partition_cap"),
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
        migrations.AddField(
            model_name="managementkey",
            name="networks",
            field=models.JSONField(
                blank=True,
                help_text="From where the key may be used, such as 192.0.2.0/24 or 2001:db8::/32. If empty, from "
                "everywhere.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="managementkey",
            name="replaced_by",
            field=models.OneToOneField(
                editable=False,
                help_text="The key that rotation made.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="projects.managementkey",
            ),
        ),
        migrations.AddField(
            model_name="managementkey",
            name="secret_end",
            field=models.CharField(
                blank=True, db_default="", default="", editable=False, max_length=4, verbose_name="end of the secret"
            ),
        ),
        migrations.AddField(
            model_name="project",
            name="anonymous_policy",
            field=models.ForeignKey(
                blank=True,
                help_text="The policy of requests without a token, where a proxy admits them for this project. "
                "The policy of the project does not apply to them. If empty, they are refused.",
                null=True,
                on_delete=django.db.models.deletion.RESTRICT,
                related_name="+",
                to="policies.policy",
            ),
        ),
        migrations.AddField(
            model_name="project",
            name="has_intake",
            field=models.BooleanField(db_default=False, default=False, editable=False),
        ),
        migrations.AddField(
            model_name="project",
            name="managed_by",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                editable=False,
                help_text="Where its file is, if it is managed from files. Empty if it is not.",
                max_length=200,
                validators=[controlplane.core.text.Printable()],
            ),
        ),
        migrations.AddField(
            model_name="project",
            name="time_zone",
            field=models.CharField(
                blank=True,
                db_default="UTC",
                default="UTC",
                help_text="Months of statements begin at midnight here, such as Europe/Berlin. If empty, in UTC.",
                max_length=64,
                validators=[controlplane.core.zones.check_time_zone],
            ),
        ),
        migrations.AddField(
            model_name="project",
            name="token_policy",
            field=models.ForeignKey(
                blank=True,
                help_text="The policy of each new token that is created without one. Existing tokens stay as they are.",
                null=True,
                on_delete=django.db.models.deletion.RESTRICT,
                related_name="+",
                to="policies.policy",
                verbose_name="policy of new tokens",
            ),
        ),
        migrations.AddField(
            model_name="token",
            name="labels",
            field=models.JSONField(
                blank=True, db_default={}, default=dict, encoder=controlplane.core.text.ReadableEncoder
            ),
        ),
        migrations.AddField(
            model_name="token",
            name="last_used_on",
            field=models.DateField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="token",
            name="replaced_by",
            field=models.OneToOneField(
                editable=False,
                help_text="The token that rotation made.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="projects.token",
            ),
        ),
        migrations.AddField(
            model_name="token",
            name="secret_end",
            field=models.CharField(
                blank=True, db_default="", default="", editable=False, max_length=4, verbose_name="end of the secret"
            ),
        ),
        migrations.AlterField(
            model_name="managementkey",
            name="name",
            field=models.CharField(max_length=200, validators=[controlplane.core.text.Printable()]),
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
        migrations.AlterField(
            model_name="project",
            name="name",
            field=models.CharField(max_length=200, validators=[controlplane.core.text.Printable()]),
        ),
        migrations.AlterField(
            model_name="project",
            name="partition_cap",
            field=models.PositiveIntegerField(
                blank=True,
                default=10000,
                help_text="How many values of an attribute, such as ip, have a counter of their own in one limit. "
                "All other values share one counter. From 1 to 1,000,000. If empty, 10,000.",
                validators=[
                    django.core.validators.MinValueValidator(1),
                    django.core.validators.MaxValueValidator(1000000),
                ],
                verbose_name="values for each limit",
            ),
        ),
        migrations.AlterField(
            model_name="token",
            name="name",
            field=models.CharField(max_length=200, validators=[controlplane.core.text.Printable()]),
        ),
        migrations.AlterField(
            model_name="token",
            name="policy",
            field=models.ForeignKey(
                blank=True,
                help_text="If empty, a new token gets the policy of new tokens of its project, if there is one.",
                null=True,
                on_delete=django.db.models.deletion.RESTRICT,
                related_name="+",
                to="policies.policy",
            ),
        ),
        migrations.RunPython(mark_the_global_keys, revoke_what_would_widen),
    ]
