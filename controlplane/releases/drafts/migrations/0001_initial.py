import functools

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import controlplane.core.ids
import controlplane.core.text


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("policies", "0003_columns"),
        ("projects", "0004_lists"),
    ]

    operations = [
        migrations.CreateModel(
            name="PolicyDraft",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("drf",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("policy_key", models.CharField(editable=False, max_length=40)),
                (
                    "slug",
                    models.CharField(
                        max_length=63,
                        validators=[
                            django.core.validators.RegexValidator(
                                "\\A[a-z0-9][a-z0-9-]{0,62}\\Z",
                                "Use 1 to 63 lower-case letters, digits and hyphens, starting with a letter or digit.",
                            )
                        ],
                    ),
                ),
                ("content", models.JSONField()),
                ("based_on", models.PositiveIntegerField(blank=True, null=True)),
                (
                    "state",
                    models.CharField(
                        choices=[("open", "open"), ("published", "published"), ("discarded", "discarded")],
                        default="open",
                        max_length=10,
                    ),
                ),
                ("saved_by", models.CharField(max_length=200, validators=[controlplane.core.text.Printable()])),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("updated_at", models.DateTimeField(auto_now=True)),
                (
                    "policy",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="drafts",
                        to="policies.policy",
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="policy_drafts",
                        to="projects.project",
                    ),
                ),
            ],
            options={
                "verbose_name": "draft",
                "ordering": ["-updated_at", "-id"],
                "indexes": [models.Index(fields=["state", "-updated_at"], name="drafts_draft_state")],
            },
        ),
    ]
