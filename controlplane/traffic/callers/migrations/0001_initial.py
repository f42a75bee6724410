from django.db import migrations, models

from controlplane.core.tables.partitioning import leave_room


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="RecordedDay",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("day", models.DateField(db_index=True)),
                ("requests", models.BigIntegerField(default=0)),
                ("allowed", models.BigIntegerField(default=0)),
                ("cost", models.BigIntegerField(default=0)),
                ("coarse", models.BigIntegerField(default=0)),
                ("hours", models.BinaryField(default=bytes)),
                ("body", models.BinaryField(default=bytes)),
            ],
            options={
                "indexes": [models.Index(fields=["project_id", "day"], name="preview_day_of_project")],
                "constraints": [
                    models.UniqueConstraint(fields=("token_id", "project_id", "day"), name="preview_day_once_a_token")
                ],
            },
        ),
        migrations.CreateModel(
            name="RecordedMinute",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("at", models.DateTimeField(db_index=True)),
                ("allowed", models.BigIntegerField(default=0)),
                ("denied", models.BigIntegerField(default=0)),
                ("cost", models.BigIntegerField(default=0)),
                ("seconds", models.BigIntegerField(default=0)),
                ("part_0", models.BigIntegerField(default=0)),
                ("part_1", models.BigIntegerField(default=0)),
                ("part_2", models.BigIntegerField(default=0)),
                ("part_3", models.BigIntegerField(default=0)),
                ("part_4", models.BigIntegerField(default=0)),
                ("part_5", models.BigIntegerField(default=0)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("project_id", "token_id", "at"), name="preview_minute_once_a_token")
                ],
            },
        ),
        # Most rows grow with each drain.
        leave_room("preview_recordedminute"),
    ]
