import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("drafts", "0001_initial"), ("policies", "0012_managed_by")]

    operations = [
        migrations.AlterField(
            model_name="policydraft",
            name="policy",
            field=models.ForeignKey(
                blank=True,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="drafts",
                to="policies.policy",
            ),
        ),
    ]
