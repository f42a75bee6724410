from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("fleet", "0008_field_counts"),
    ]

    operations = [
        migrations.AddField(
            model_name="instance",
            name="in_code",
            field=models.CharField(
                blank=True, choices=[("shadow", "shadow"), ("off", "off")], db_default="", default="", max_length=8
            ),
        ),
    ]
