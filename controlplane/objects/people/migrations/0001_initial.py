import functools
from itertools import chain, count

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

import controlplane.core.ids

NAME, NEW_NAME = "operators", "operators before roles"


def create_group(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Create the group of operators, without members. A group that already had this name keeps its own purpose."""
    groups = apps.get_model("auth", "Group").objects.using(schema_editor.connection.alias)
    former = groups.filter(name=NAME).first()
    if former is not None:
        names = chain((NEW_NAME,), (f"{NEW_NAME} {number}" for number in count(2)))
        former.name = next(name for name in names if not groups.filter(name=name).exists())
        former.save(update_fields=["name"])
    groups.create(name=NAME)


def delete_group(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Delete the group of operators, whose name meant nothing before."""
    apps.get_model("auth", "Group").objects.using(schema_editor.connection.alias).filter(name=NAME).delete()


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("projects", "0004_lists"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="Membership",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("mem",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "role",
                    models.CharField(
                        choices=[("viewer", "viewer"), ("editor", "editor"), ("owner", "owner")], max_length=10
                    ),
                ),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "project",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="memberships", to="projects.project"
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="memberships",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "ordering": ["project__slug", "user__username"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("user", "project"),
                        name="access_membership_once_a_project",
                        violation_error_message="This user is a member of the project already.",
                    )
                ],
            },
        ),
        migrations.RunPython(create_group, delete_group),
    ]
