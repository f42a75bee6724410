from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("policies", "0007_metering"),
    ]

    operations = [
        migrations.AddField(model_name="limit", name="rollover", field=models.BigIntegerField(blank=True, null=True)),
    ]
