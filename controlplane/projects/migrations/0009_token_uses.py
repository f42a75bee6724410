"""An index that counts the tokens of a policy in some projects, created while other programs write."""

from django.db import migrations, models

from controlplane.lists import indexing


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("projects", "0008_token_lists")]

    operations = [
        indexing.AddIndex(
            model_name="token", index=models.Index(fields=["policy", "project"], name="projects_token_uses")
        ),
    ]
