from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("prices", "0004_classes"),
    ]

    operations = [
        migrations.AddField(
            model_name="modelprice",
            name="bounds",
            field=models.JSONField(blank=True, default=dict),
        ),
    ]
