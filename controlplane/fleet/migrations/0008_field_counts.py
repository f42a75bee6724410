from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("fleet", "0007_glass"),
    ]

    operations = [
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
