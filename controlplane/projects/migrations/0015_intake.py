from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("projects", "0014_secret_end")]

    operations = [
        migrations.AddField(
            model_name="project",
            name="has_intake",
            field=models.BooleanField(db_default=False, default=False, editable=False),
        ),
    ]
