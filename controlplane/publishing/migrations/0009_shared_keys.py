from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("publishing", "0008_emergency")]

    operations = [
        migrations.AlterField(
            model_name="outboxentry",
            name="kind",
            field=models.CharField(
                choices=[
                    ("policy", "policy"),
                    ("project", "project"),
                    ("token", "token"),
                    ("global", "global"),
                    ("prices", "prices"),
                    ("emergency", "emergency"),
                    ("intakes", "intakes"),
                    ("all", "all"),
                    ("epoch", "epoch"),
                    ("reset", "reset"),
                ],
                max_length=10,
            ),
        ),
        migrations.CreateModel(
            name="RepairedKey",
            fields=[
                ("key", models.CharField(max_length=128, primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=20)),
                ("project_id", models.CharField(blank=True, max_length=40)),
                ("reason", models.CharField(max_length=200)),
                ("times", models.BigIntegerField(default=0)),
                ("last_at", models.DateTimeField()),
            ],
            options={"ordering": ["key"]},
        ),
    ]
