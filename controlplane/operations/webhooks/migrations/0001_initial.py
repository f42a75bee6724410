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
            name="Destination",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("whk",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("name", models.CharField(max_length=200, validators=[controlplane.core.text.Printable()])),
                (
                    "kind",
                    models.CharField(
                        choices=[("webhook", "webhook"), ("email", "e-mail"), ("chat", "chat or pager")],
                        default="webhook",
                        max_length=10,
                    ),
                ),
                (
                    "url",
                    models.CharField(
                        blank=True,
                        help_text="Of a webhook, such as https://alerts.example/hook. It is shown to members.",
                        max_length=500,
                        verbose_name="URL",
                    ),
                ),
                ("emails", models.JSONField(blank=True, default=list, verbose_name="e-mail addresses")),
                ("service", models.CharField(blank=True, editable=False, max_length=20)),
                ("sealed", models.TextField(blank=True, editable=False)),
                ("active", models.BooleanField(default=True, help_text="An inactive destination gets nothing.")),
                ("generation", models.PositiveIntegerField(default=1, editable=False)),
                ("rotated_at", models.DateTimeField(editable=False, null=True)),
                ("signs_from", models.PositiveIntegerField(editable=False, null=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                (
                    "project",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="destinations",
                        to="projects.project",
                    ),
                ),
            ],
            options={
                "verbose_name": "destination",
                "ordering": ["name", "id"],
            },
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("dlv",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("message_id", models.CharField(max_length=40)),
                ("kind", models.CharField(max_length=60)),
                ("body", models.TextField()),
                (
                    "state",
                    models.CharField(
                        choices=[("pending", "pending"), ("delivered", "delivered"), ("failed", "failed")],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("next_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("log", models.JSONField(default=list)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("delivered_at", models.DateTimeField(null=True)),
                (
                    "destination",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="webhooks.destination",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "deliveries",
                "ordering": ["-created_at", "-id"],
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "pending")), fields=["next_at"], name="webhooks_delivery_due"
                    ),
                    models.Index(fields=["-created_at", "-id"], name="webhooks_delivery_latest"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("destination", "message_id"), name="webhooks_message_once_a_destination"
                    )
                ],
            },
        ),
    ]
