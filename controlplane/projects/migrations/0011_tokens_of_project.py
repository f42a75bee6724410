"""Indexes for the tokens of a project by name, and for its revoked ones, created while other programs write."""

from django.db import migrations, models

from controlplane.lists import indexing


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("projects", "0010_replaced_by")]

    operations = [
        indexing.AddIndex(
            model_name="token", index=models.Index(fields=["project", "name", "-id"], name="projects_token_named")
        ),
        indexing.AddIndex(
            model_name="token",
            index=models.Index(
                fields=["project", "-created_at"],
                name="projects_token_gone",
                condition=models.Q(("revoked_at__isnull", False)),
            ),
        ),
    ]
