import functools

import django.utils.timezone
from django.db import migrations, models

import controlplane.core.ids
import controlplane.core.text


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="BrokenBound",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("project_id", models.CharField(max_length=40)),
                ("model", models.CharField(blank=True, max_length=128)),
                ("format", models.CharField(max_length=32)),
                ("requests", models.BigIntegerField(default=0)),
                ("added", models.IntegerField(default=0)),
                ("last_at", models.DateTimeField(db_index=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("project_id", "model", "format"), name="prices_broken_once_a_key")
                ],
            },
        ),
        migrations.CreateModel(
            name="LearnedEstimate",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("est",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("group", "group of models"), ("tool", "tool of a provider")], max_length=5
                    ),
                ),
                ("name", models.CharField(max_length=320)),
                ("numbers", models.JSONField()),
                ("requests", models.BigIntegerField()),
                ("projects", models.IntegerField()),
                ("error", models.IntegerField(blank=True, null=True)),
                ("changed_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                "verbose_name": "learned estimate",
                "ordering": ["kind", "name"],
                "constraints": [models.UniqueConstraint(fields=("kind", "name"), name="prices_estimate_once_a_name")],
            },
        ),
        migrations.CreateModel(
            name="ModelAddend",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("add",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("pattern", models.CharField(max_length=256, unique=True)),
                ("tokens", models.IntegerField(default=0)),
                ("reported", models.IntegerField(default=0)),
                ("raised_at", models.DateTimeField(null=True)),
            ],
            options={
                "verbose_name": "addend",
                "ordering": ["pattern"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("reported__gte", 0), ("reported__lte", 65537), ("tokens__gte", 0), ("tokens__lte", 65537)
                        ),
                        name="prices_addend_in_bounds",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ModelPrice",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("prc",)),
                        editable=False,
                        max_length=40,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "source",
                    models.CharField(
                        choices=[("operator", "operator"), ("catalogue", "catalogue")],
                        default="operator",
                        editable=False,
                        max_length=10,
                    ),
                ),
                (
                    "pattern",
                    models.CharField(
                        help_text="The name of a model, in which * stands for any characters, also none.",
                        max_length=256,
                        validators=[controlplane.core.text.Printable()],
                        verbose_name="model",
                    ),
                ),
                ("valid_from", models.DateTimeField(blank=True, null=True)),
                ("valid_until", models.DateTimeField(blank=True, null=True)),
                ("input", models.BigIntegerField()),
                ("output", models.BigIntegerField()),
                ("cached_input", models.BigIntegerField(blank=True, null=True)),
                ("cache_write", models.BigIntegerField(blank=True, null=True)),
                ("calls", models.BigIntegerField(blank=True, null=True)),
                ("classes", models.JSONField(blank=True, default=dict)),
                ("multipliers", models.JSONField(blank=True, default=dict)),
                ("bounds", models.JSONField(blank=True, default=dict)),
                ("tiers", models.JSONField(blank=True, default=list)),
                ("changed_by", models.CharField(blank=True, editable=False, max_length=200)),
                ("changed_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                "verbose_name": "price",
                "ordering": ["pattern", "valid_from", "id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("source", "pattern", "valid_from"),
                        name="prices_once_a_beginning",
                        violation_error_message="There is a price for this pattern and beginning already.",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("valid_from", None)),
                        fields=("source", "pattern"),
                        name="prices_once_without_a_beginning",
                        violation_error_message="There is a price for this pattern and beginning already.",
                    ),
                ],
            },
        ),
    ]
