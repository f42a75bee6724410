"""Indexes for the list of tokens and its search, created while other programs write."""

from django.db import migrations, models

from controlplane.lists import indexing


def added(name: str, fields: list[str], **options: object) -> indexing.AddIndex:
    return indexing.AddIndex(model_name="token", index=models.Index(fields=fields, name=name, **options))


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("projects", "0007_time_zone")]

    operations = [
        added("projects_token_created", ["-created_at", "-id"]),
        added("projects_token_name", ["name", "-id"]),
        added("projects_token_ends", ["expires_at", "id"]),
        added("projects_token_prefix", ["prefix"], opclasses=["varchar_pattern_ops"]),
        added("projects_token_live", ["project", "expires_at"], condition=models.Q(("revoked_at", None))),
        added("projects_token_revoked", ["-created_at"], condition=models.Q(("revoked_at__isnull", False))),
        indexing.Searched("projects_token", ("name",), ("labels",)).operation(),
        indexing.sql_index("projects_token_labels", "projects_token USING gin (labels)"),
    ]
