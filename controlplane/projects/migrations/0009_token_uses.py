"""Indexes that count the tokens of a policy, all in some projects and the live ones, created while others write."""

from django.db import migrations, models

from controlplane.lists import indexing


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("projects", "0008_token_lists")]

    operations = [
        indexing.AddIndex(
            model_name="token", index=models.Index(fields=["policy", "project"], name="projects_token_uses")
        ),
        indexing.AddIndex(
            model_name="token",
            index=models.Index(
                fields=["policy", "expires_at"],
                name="projects_token_having",
                condition=models.Q(("revoked_at", None)),
            ),
        ),
    ]
