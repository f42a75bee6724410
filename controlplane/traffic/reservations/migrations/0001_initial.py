import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="ReservationCount",
            fields=[
                ("project_id", models.CharField(max_length=40, primary_key=True, serialize=False)),
                ("open", models.PositiveIntegerField(default=0)),
                ("lost", models.PositiveIntegerField(default=0)),
                ("lost_since", models.DateTimeField(blank=True, null=True)),
                ("of_token", models.PositiveIntegerField(db_default=0, default=0)),
                ("at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
        migrations.CreateModel(
            name="Reservation",
            fields=[
                ("id", models.CharField(editable=False, max_length=64, primary_key=True, serialize=False)),
                ("project_id", models.CharField(blank=True, db_index=True, max_length=40)),
                ("token_id", models.CharField(blank=True, db_index=True, max_length=40)),
                ("instance", models.CharField(blank=True, max_length=128)),
                ("model", models.CharField(blank=True, max_length=128)),
                ("at", models.DateTimeField()),
                ("expires_at", models.DateTimeField()),
                ("amounts", models.JSONField(default=list)),
                ("estimate", models.JSONField(default=dict)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "open"),
                            ("lost", "lost"),
                            ("settling", "settling"),
                            ("settled", "settled"),
                            ("released", "released"),
                        ],
                        default="lost",
                        max_length=8,
                    ),
                ),
                ("settled_as", models.CharField(blank=True, max_length=16)),
                ("settled_at", models.DateTimeField(blank=True, null=True)),
                ("settled_by", models.CharField(blank=True, max_length=200)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("order", models.JSONField(default=dict)),
            ],
            options={
                "ordering": ["-at", "-id"],
                "indexes": [models.Index(fields=["state", "-at", "-id"], name="reservations_state")],
            },
        ),
    ]
