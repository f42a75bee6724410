"""What a policy, a limit, an override and an audit entry have since 0.2."""

import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

import controlplane.core.partitions
import controlplane.core.text


def delete_what_0_2_lacks(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Delete the overrides that 0.2 would take for present ones of all values. It kept none that had ended."""
    rows = apps.get_model("policies", "Override")._base_manager
    rows.filter(~models.Q(partition="") | models.Q(ended_at__isnull=False)).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("policies", "0002_initial"),
        ("projects", "0002_partition_cap"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="override",
            options={
                "ordering": ["-created_at", "-id"],
                "permissions": [("add_endless_override", "Can give an override no end")],
            },
        ),
        migrations.RemoveConstraint(
            model_name="override",
            name="policies_override_once_a_token",
        ),
        migrations.RemoveConstraint(
            model_name="override",
            name="policies_override_once_a_project",
        ),
        migrations.AddField(
            model_name="auditentry",
            name="change",
            field=models.CharField(blank=True, db_default="", db_index=True, default="", max_length=40),
        ),
        migrations.AddField(
            model_name="auditentry",
            name="project",
            field=models.CharField(blank=True, db_default="", default="", editable=False, max_length=40),
        ),
        migrations.AddField(
            model_name="limit",
            name="charge_as",
            field=models.CharField(
                blank=True, db_default="", default="", max_length=256, validators=[controlplane.core.text.Printable()]
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="rollover",
            field=models.BigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="limit",
            name="unmetered",
            field=models.CharField(
                choices=[("deny", "deny"), ("count_only", "count only")],
                db_default="deny",
                default="deny",
                max_length=10,
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="unpriced",
            field=models.CharField(
                choices=[("deny", "deny"), ("count_only", "count only"), ("charge_as", "charge as")],
                db_default="deny",
                default="deny",
                max_length=10,
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="weights",
            field=models.JSONField(blank=True, db_default={}, default=dict),
        ),
        migrations.AddField(
            model_name="override",
            name="ended_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="override",
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
            model_name="override",
            name="partition",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                max_length=600,
                validators=[controlplane.core.partitions.check_values],
            ),
        ),
        migrations.AddField(
            model_name="policy",
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
            model_name="policy",
            name="metering",
            field=models.JSONField(blank=True, db_default={}, default=dict),
        ),
        migrations.AlterField(
            model_name="override",
            name="reason",
            field=models.CharField(max_length=500, validators=[controlplane.core.text.Printable()]),
        ),
        migrations.AlterField(
            model_name="policy",
            name="description",
            field=models.TextField(
                blank=True, max_length=4000, validators=[controlplane.core.text.Printable(lines=True)]
            ),
        ),
        migrations.AlterField(
            model_name="policy",
            name="name",
            field=models.CharField(max_length=200, validators=[controlplane.core.text.Printable()]),
        ),
        migrations.AlterField(
            model_name="policy",
            name="project",
            field=models.ForeignKey(
                blank=True,
                help_text="The project that owns the policy. If empty, all projects share it.",
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="policies",
                to="projects.project",
            ),
        ),
        migrations.AddIndex(
            model_name="override",
            index=models.Index(
                condition=models.Q(("ended_at", None)), fields=["ends_at"], name="policies_override_ends"
            ),
        ),
        migrations.AddConstraint(
            model_name="override",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ended_at", None)),
                fields=("limit", "token", "partition"),
                name="policies_override_once_a_token",
                violation_error_message="This token has an override of this limit and value already.",
            ),
        ),
        migrations.AddConstraint(
            model_name="override",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ended_at", None)),
                fields=("limit", "project", "partition"),
                name="policies_override_once_a_project",
                violation_error_message="This project has an override of this limit and value already.",
            ),
        ),
        migrations.RunPython(migrations.RunPython.noop, delete_what_0_2_lacks),
    ]
