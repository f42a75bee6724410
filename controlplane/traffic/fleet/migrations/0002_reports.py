"""What an instance reports since 0.2."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("fleet", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="instance",
            name="glass_until",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="instance",
            name="in_code",
            field=models.CharField(
                blank=True, choices=[("shadow", "shadow"), ("off", "off")], db_default="", default="", max_length=8
            ),
        ),
        migrations.AddField(
            model_name="instance",
            name="price_revision",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="instance",
            name="problems",
            field=models.JSONField(db_default=[], default=list),
        ),
        migrations.AddField(
            model_name="instance",
            name="revision_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="instance",
            name="unmetered",
            field=models.JSONField(db_default=[], default=list),
        ),
        migrations.AddField(
            model_name="instance",
            name="unsupported",
            field=models.JSONField(db_default=[], default=list),
        ),
        migrations.CreateModel(
            name="FieldCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("process", models.CharField(max_length=160)),
                ("day", models.IntegerField()),
                ("counts", models.JSONField(default=dict)),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("day", "process"), name="fleet_fields_once_a_day")],
            },
        ),
    ]
