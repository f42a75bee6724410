from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0004_denial_index"),
    ]

    operations = [
        migrations.AddField(model_name="checkpoint", name="carried", field=models.JSONField(null=True)),
        migrations.AddField(
            model_name="checkpoint", name="kept_until_us", field=models.BigIntegerField(db_index=True, null=True)
        ),
    ]
