"""Numbers for estimates in place of factors. They are learned anew, as a factor says nothing of tools."""

import functools

import django.utils.timezone
from django.db import migrations, models

import controlplane.core.ids


class Migration(migrations.Migration):
    dependencies = [("prices", "0006_addends")]

    operations = [
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
        migrations.DeleteModel(name="ModelFactor"),
    ]
