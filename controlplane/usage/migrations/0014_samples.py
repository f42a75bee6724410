"""What estimates are learned from, in place of the bytes of text."""

from django.db import migrations, models

NUMBERS = (
    *("requests", "uses", "reported", "error"),
    *("bytes_bytes", "bytes_objects", "bytes_one", "objects_objects", "objects_one", "one_one"),
    *("bytes_tools", "objects_tools", "tools_tools", "tools_any", "bytes_any", "objects_any", "any_any"),
    *("bytes_tokens", "objects_tokens", "one_tokens", "tools_tokens", "any_tokens"),
)


class Migration(migrations.Migration):
    dependencies = [("usage", "0013_activity")]

    operations = [
        migrations.CreateModel(
            name="EstimateSample",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("day", models.DateTimeField()),
                ("project_id", models.CharField(max_length=40)),
                ("token_id", models.CharField(blank=True, max_length=40)),
                ("model", models.CharField(max_length=128)),
                ("interface", models.CharField(max_length=32)),
                ("tool", models.CharField(blank=True, max_length=40)),
                *((name, models.BigIntegerField(default=0)) for name in NUMBERS),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("day", "project_id", "token_id", "model", "interface", "tool"),
                        name="usage_sample_once_a_key",
                    )
                ]
            },
        ),
        migrations.RemoveField(model_name="meteredrow", name="text_requests"),
        migrations.RemoveField(model_name="meteredrow", name="text_bytes"),
        migrations.RemoveField(model_name="meteredrow", name="text_input"),
    ]
