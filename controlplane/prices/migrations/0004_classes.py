from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("prices", "0003_calls"),
    ]

    operations = [
        migrations.AddField(
            model_name="modelprice",
            name="classes",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.AddField(
            model_name="modelprice",
            name="multipliers",
            field=models.JSONField(blank=True, default=dict),
        ),
    ]
