import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("projects", "0011_tokens_of_project"),
    ]

    operations = [
        migrations.AddField(
            model_name="managementkey",
            name="networks",
            field=models.JSONField(
                blank=True,
                help_text="From where the key may be used, such as 192.0.2.0/24 or 2001:db8::/32. If empty, from "
                "everywhere.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="managementkey",
            name="replaced_by",
            field=models.OneToOneField(
                editable=False,
                help_text="The key that rotation made.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="projects.managementkey",
            ),
        ),
    ]
