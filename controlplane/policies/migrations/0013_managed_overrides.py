from django.db import migrations, models

from controlplane.core.text import PRINTABLE


class Migration(migrations.Migration):
    dependencies = [("policies", "0012_managed_by")]

    operations = [
        migrations.AddField(
            model_name="override",
            name="managed_by",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                editable=False,
                help_text="Where its file is, if it is managed from files. Empty if it is not.",
                max_length=200,
                validators=[PRINTABLE],
            ),
        ),
    ]
