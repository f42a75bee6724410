from datetime import timedelta

from django.db import migrations, models

from controlplane.core.tables.partitioning import partition

KEPT = {"minute": timedelta(hours=48), "hour": timedelta(days=90), "day": timedelta(days=730)}


class Migration(migrations.Migration):
    """
    Give the tables of usage partitions on PostgreSQL, so that old rows are dropped with their day.

    It copies all rows while drains and readers wait. "Upgrade" in operating.md says how long.
    """

    dependencies = [
        # They add up days that are no longer kept.
        ("statements", "0001_initial"),
        ("usage", "0002_checkpoints"),
    ]

    operations = [
        migrations.CreateModel(
            name="DecisionCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "period",
                    models.CharField(choices=[("minute", "minute"), ("hour", "hour"), ("day", "day")], max_length=6),
                ),
                ("at", models.DateTimeField()),
                ("policy_id", models.CharField(blank=True, max_length=40)),
                ("project_id", models.CharField(max_length=40)),
                ("allowed", models.BigIntegerField(default=0)),
                ("denied", models.BigIntegerField(default=0)),
                ("would_deny", models.BigIntegerField(default=0)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["policy_id", "period", "at"], name="usage_policy_period"),
                    models.Index(
                        condition=models.Q(("policy_id", "")),
                        fields=["period", "at", "project_id"],
                        name="usage_project_period",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("period", "at", "policy_id", "project_id"), name="usage_policy_once_a_key"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DeniedRequest",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("decision", models.CharField(max_length=200, unique=True)),
                ("at", models.DateTimeField(db_index=True)),
                ("instance", models.CharField(blank=True, max_length=128)),
                ("reason", models.CharField(max_length=32)),
                ("project_id", models.CharField(blank=True, max_length=40)),
                ("token_id", models.CharField(blank=True, db_index=True, max_length=40)),
                ("policy_id", models.CharField(blank=True, max_length=40)),
                ("limit_name", models.CharField(blank=True, max_length=64)),
                ("attributes", models.JSONField(blank=True, default=dict)),
            ],
            options={
                "verbose_name": "sampled denial",
                "ordering": ["-at", "-id"],
                "indexes": [models.Index(fields=["project_id", "-at", "-id"], name="usage_denial_project")],
            },
        ),
        migrations.CreateModel(
            name="EstimateSample",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateTimeField()),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("model", models.CharField(max_length=128)),
                ("interface", models.CharField(max_length=32)),
                ("tool", models.CharField(blank=True, max_length=40)),
                ("requests", models.BigIntegerField(default=0)),
                ("uses", models.BigIntegerField(default=0)),
                ("reported", models.BigIntegerField(default=0)),
                ("error", models.BigIntegerField(default=0)),
                ("bytes_bytes", models.BigIntegerField(default=0)),
                ("bytes_objects", models.BigIntegerField(default=0)),
                ("bytes_one", models.BigIntegerField(default=0)),
                ("objects_objects", models.BigIntegerField(default=0)),
                ("objects_one", models.BigIntegerField(default=0)),
                ("one_one", models.BigIntegerField(default=0)),
                ("bytes_tools", models.BigIntegerField(default=0)),
                ("objects_tools", models.BigIntegerField(default=0)),
                ("tools_tools", models.BigIntegerField(default=0)),
                ("tools_any", models.BigIntegerField(default=0)),
                ("bytes_any", models.BigIntegerField(default=0)),
                ("objects_any", models.BigIntegerField(default=0)),
                ("any_any", models.BigIntegerField(default=0)),
                ("bytes_tokens", models.BigIntegerField(default=0)),
                ("objects_tokens", models.BigIntegerField(default=0)),
                ("one_tokens", models.BigIntegerField(default=0)),
                ("tools_tokens", models.BigIntegerField(default=0)),
                ("any_tokens", models.BigIntegerField(default=0)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("day", "project_id", "token_id", "model", "interface", "tool"),
                        name="usage_sample_once_a_key",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="MeteredRow",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "period",
                    models.CharField(choices=[("minute", "minute"), ("hour", "hour"), ("day", "day")], max_length=6),
                ),
                ("at", models.DateTimeField()),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("model", models.CharField(blank=True, max_length=128)),
                ("settled_as", models.CharField(max_length=16)),
                ("approximate", models.BooleanField(default=False)),
                ("price_revision", models.BigIntegerField(default=0)),
                ("requests", models.BigIntegerField(default=0)),
                ("input", models.BigIntegerField(default=0)),
                ("cached_input", models.BigIntegerField(default=0)),
                ("cache_write", models.BigIntegerField(default=0)),
                ("output", models.BigIntegerField(default=0)),
                ("micros", models.BigIntegerField(default=0)),
                ("estimated_input", models.BigIntegerField(default=0)),
                ("calls", models.BigIntegerField(db_default=0, default=0)),
            ],
            options={
                "verbose_name": "metered usage",
                "verbose_name_plural": "metered usage",
                "ordering": ["at", "id"],
            },
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="carried",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="checkpoint",
            name="kept_until_us",
            field=models.BigIntegerField(db_index=True, null=True),
        ),
        migrations.AddField(
            model_name="usagerow",
            name="activity",
            field=models.SmallIntegerField(db_default=0, default=0, editable=False),
        ),
        *(partition("usage", name, KEPT) for name in ("UsageRow", "MeteredRow")),
        # Not concurrently, which PostgreSQL refuses for a table with partitions. They take less time than their copy.
        migrations.AddIndex(
            model_name="usagerow",
            index=models.Index(
                condition=models.Q(("limit_name", ""), ("policy_id", "")),
                fields=["period", "at", "activity", "id"],
                name="usage_row_activity",
            ),
        ),
        migrations.AddIndex(
            model_name="usagerow",
            index=models.Index(
                condition=models.Q(("denied__gt", 0)), fields=["period", "at"], name="usage_row_denials"
            ),
        ),
        migrations.AddConstraint(
            "meteredrow",
            models.UniqueConstraint(
                fields=(
                    "period",
                    "at",
                    "project_id",
                    "token_id",
                    "model",
                    "settled_as",
                    "approximate",
                    "price_revision",
                ),
                name="usage_metered_once_a_key",
            ),
        ),
        migrations.AddIndex("meteredrow", models.Index(fields=["period", "at"], name="usage_metered_period")),
        migrations.AddIndex(
            "meteredrow", models.Index(fields=["project_id", "period", "at"], name="usage_metered_project")
        ),
        migrations.AddIndex("meteredrow", models.Index(fields=["model", "period", "at"], name="usage_metered_model")),
    ]
