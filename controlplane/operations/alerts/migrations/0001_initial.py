import functools

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import controlplane.core.ids
import controlplane.core.text
import controlplane.operations.alerts.rule_kinds


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("projects", "0004_lists"),
        ("webhooks", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Steadiness",
            fields=[
                (
                    "number",
                    models.PositiveSmallIntegerField(default=1, editable=False, primary_key=True, serialize=False),
                ),
                ("looked_at", models.DateTimeField()),
                ("steady_since", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="AlertRule",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("alr",)),
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
                        choices=[
                            ("usage", "a share of a limit is used"),
                            ("forecast", "a limit will be used up before it resets"),
                            ("denials", "a share of the requests is denied"),
                            ("would_deny", "shadow limits would deny a share of the requests"),
                            ("spend", "a share of an amount is spent in a month"),
                            ("reservations_lost", "reservations are lost"),
                            ("expiring", "a token, an override or a management key ends soon"),
                            ("store_outage", "the store is not reachable"),
                            ("instances_lost", "instances are lost"),
                            ("rollout_stuck", "a revision is not live everywhere"),
                            ("unpriced", "requests ask for a model without a price"),
                            ("bound_broken", "an answer used more than its bound"),
                            ("unmetered", "a limit counts nothing, as requests give no cost in its unit"),
                        ],
                        max_length=20,
                        verbose_name="alert if",
                    ),
                ),
                (
                    "limit",
                    models.CharField(
                        default="*",
                        help_text="For a share of a limit: policy-slug/limit-name, or * for each limit.",
                        max_length=128,
                        validators=[controlplane.core.text.Printable()],
                    ),
                ),
                (
                    "thresholds",
                    models.JSONField(blank=True, default=controlplane.operations.alerts.rule_kinds.usual_thresholds),
                ),
                (
                    "within_seconds",
                    models.PositiveIntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(60),
                            django.core.validators.MaxValueValidator(7776000),
                        ],
                    ),
                ),
                (
                    "amount",
                    models.BigIntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(9007199254740991),
                        ],
                    ),
                ),
                (
                    "cool_down_seconds",
                    models.PositiveIntegerField(
                        default=3600, validators=[django.core.validators.MaxValueValidator(7776000)]
                    ),
                ),
                (
                    "recovery",
                    models.BooleanField(
                        default=True,
                        help_text="A token that has ended is not told of.",
                        verbose_name="say when it is over",
                    ),
                ),
                ("active", models.BooleanField(default=True, help_text="An inactive rule has no new events.")),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ("evaluated_at", models.DateTimeField(editable=False, null=True)),
                (
                    "destinations",
                    models.ManyToManyField(
                        blank=True,
                        help_text="Those of the same project. Without any, events are only listed here.",
                        related_name="rules",
                        to="webhooks.destination",
                    ),
                ),
                (
                    "project",
                    models.ForeignKey(
                        blank=True,
                        help_text="If empty, all projects are watched, or the installation.",
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="alert_rules",
                        to="projects.project",
                    ),
                ),
            ],
            options={
                "ordering": ["name", "id"],
            },
        ),
        migrations.CreateModel(
            name="AlertEvent",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("evt",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("kind", models.CharField(max_length=20)),
                (
                    "state",
                    models.CharField(
                        choices=[("raised", "raised"), ("resolved", "resolved")], default="raised", max_length=10
                    ),
                ),
                ("subject", models.CharField(max_length=300)),
                ("period", models.CharField(max_length=64)),
                ("level", models.PositiveIntegerField(default=1)),
                ("title", models.CharField(max_length=500)),
                ("over", models.CharField(blank=True, max_length=500)),
                ("data", models.JSONField(default=dict)),
                ("at", models.DateTimeField()),
                ("ends_at", models.DateTimeField(null=True)),
                ("resolved_at", models.DateTimeField(null=True)),
                (
                    "project",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="projects.project"
                    ),
                ),
                (
                    "rule",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="events", to="alerts.alertrule"
                    ),
                ),
            ],
            options={
                "ordering": ["-at", "-id"],
                "indexes": [
                    models.Index(fields=["-at", "-id"], name="alerts_event_latest"),
                    models.Index(
                        condition=models.Q(("resolved_at", None), ("state", "raised")),
                        fields=["rule"],
                        name="alerts_event_open",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("rule", "subject", "period", "level", "state"), name="alerts_event_once_a_period"
                    )
                ],
            },
        ),
    ]
