import functools

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import controlplane.core.ids
import controlplane.core.text


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("projects", "0004_lists"),
    ]

    operations = [
        migrations.CreateModel(
            name="BreakGlass",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("glass",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("began_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("ends_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(blank=True, null=True)),
                ("reason", models.CharField(max_length=500, validators=[controlplane.core.text.Printable()])),
                ("by", models.CharField(max_length=200)),
                ("ended_by", models.CharField(blank=True, max_length=200)),
            ],
            options={
                "verbose_name_plural": "break glass",
                "ordering": ["-began_at"],
            },
        ),
        migrations.CreateModel(
            name="EndedSuspension",
            fields=[
                (
                    "name",
                    models.CharField(
                        blank=True,
                        help_text="The attribute as proxies name it, such as session, ip, header.x-id or label.team.",
                        max_length=64,
                        verbose_name="attribute",
                    ),
                ),
                ("value", models.CharField(blank=True, max_length=1024)),
                ("reason", models.CharField(max_length=500, validators=[controlplane.core.text.Printable()])),
                ("by", models.CharField(editable=False, max_length=200)),
                ("at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("ends_at", models.DateTimeField(blank=True, null=True)),
                ("id", models.CharField(editable=False, max_length=40, primary_key=True, serialize=False)),
                ("ended_at", models.DateTimeField()),
                ("ended_by", models.CharField(max_length=200)),
                (
                    "project",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="ended_suspensions",
                        to="projects.project",
                    ),
                ),
                (
                    "token",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="ended_suspensions",
                        to="projects.token",
                    ),
                ),
                (
                    "within",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="ended_values",
                        to="projects.project",
                    ),
                ),
            ],
            options={
                "ordering": ["-ended_at", "-id"],
            },
        ),
        migrations.CreateModel(
            name="Suspension",
            fields=[
                (
                    "name",
                    models.CharField(
                        blank=True,
                        help_text="The attribute as proxies name it, such as session, ip, header.x-id or label.team.",
                        max_length=64,
                        verbose_name="attribute",
                    ),
                ),
                ("value", models.CharField(blank=True, max_length=1024)),
                ("reason", models.CharField(max_length=500, validators=[controlplane.core.text.Printable()])),
                ("by", models.CharField(editable=False, max_length=200)),
                ("at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("ends_at", models.DateTimeField(blank=True, null=True)),
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("sus",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "project",
                    models.OneToOneField(
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="suspension",
                        to="projects.project",
                    ),
                ),
                (
                    "token",
                    models.OneToOneField(
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="suspension",
                        to="projects.token",
                    ),
                ),
                (
                    "within",
                    models.ForeignKey(
                        blank=True,
                        help_text="If empty, the value is refused in all projects.",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="suspended_values",
                        to="projects.project",
                        verbose_name="project",
                    ),
                ),
            ],
            options={
                "ordering": ["-at", "-id"],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("project", None), ("token", None)),
                        fields=("within", "name", "value"),
                        name="emergency_value_once",
                        violation_error_message="This value is suspended already.",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("project", None), ("token", None), ("within", None)),
                        fields=("name", "value"),
                        name="emergency_value_once_everywhere",
                        violation_error_message="This value is suspended already.",
                    ),
                ],
            },
        ),
    ]
