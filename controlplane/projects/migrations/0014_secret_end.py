"""The end of each secret, and the day of the last use with its index, filled while other programs write."""

from itertools import batched
from typing import Any

from django.db import migrations, models
from django.db.models.functions import TruncDate

from controlplane.lists import columns, indexing

AT_ONCE = 5_000


def fill(apps: Any, schema_editor: Any) -> None:
    tokens = apps.get_model("projects", "Token").objects.using(schema_editor.connection.alias)
    used = tokens.exclude(last_used_at=None).filter(last_used_on=None)
    for keys in batched(list(used.order_by("pk").values_list("pk", flat=True)), AT_ONCE):
        tokens.filter(pk__in=keys, last_used_on=None).update(last_used_on=TruncDate("last_used_at"))


def secret_end() -> models.CharField:
    return models.CharField(
        blank=True, db_default="", default="", editable=False, max_length=4, verbose_name="end of the secret"
    )


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("projects", "0013_managed_by")]

    operations = [
        columns.AddField(model_name="managementkey", name="secret_end", field=secret_end()),
        columns.AddField(model_name="token", name="secret_end", field=secret_end()),
        columns.AddField(model_name="token", name="last_used_on", field=models.DateField(editable=False, null=True)),
        migrations.RunPython(fill, migrations.RunPython.noop),
        indexing.AddIndex(
            model_name="token",
            index=models.Index(
                fields=["last_used_on", "created_at"],
                name="projects_token_unused",
                condition=models.Q(("revoked_at", None)),
            ),
        ),
    ]
