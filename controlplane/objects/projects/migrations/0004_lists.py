"""The day of the last use of each token, and the indexes of lists and searches, made while other programs write."""

from collections.abc import Sequence
from itertools import batched

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models.functions import TruncDate

from controlplane.core.tables import indexing

AT_ONCE = 5_000


def fill(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    tokens = apps.get_model("projects", "Token").objects.using(schema_editor.connection.alias)
    used = tokens.exclude(last_used_at=None).filter(last_used_on=None)
    for keys in batched(list(used.order_by("pk").values_list("pk", flat=True)), AT_ONCE):
        tokens.filter(pk__in=keys, last_used_on=None).update(last_used_on=TruncDate("last_used_at"))


def added(
    name: str, fields: list[str], opclasses: Sequence[str] = (), condition: models.Q | None = None
) -> indexing.AddIndex:
    index = models.Index(fields=fields, name=name, opclasses=opclasses, condition=condition)
    return indexing.AddIndex(model_name="token", index=index)


LIVE = models.Q(("revoked_at", None))
REVOKED = models.Q(("revoked_at__isnull", False))


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("projects", "0003_columns")]

    operations = [
        migrations.RunPython(fill, migrations.RunPython.noop),
        added("projects_token_created", ["-created_at", "-id"]),
        added("projects_token_name", ["name", "-id"]),
        added("projects_token_named", ["project", "name", "-id"]),
        added("projects_token_ends", ["expires_at", "id"]),
        added("projects_token_prefix", ["prefix"], opclasses=["varchar_pattern_ops"]),
        added("projects_token_live", ["project", "expires_at"], condition=LIVE),
        added("projects_token_uses", ["policy", "project"]),
        added("projects_token_having", ["policy", "expires_at"], condition=LIVE),
        added("projects_token_unused", ["last_used_on", "created_at"], condition=LIVE),
        added("projects_token_revoked", ["-created_at"], condition=REVOKED),
        added("projects_token_gone", ["project", "-created_at"], condition=REVOKED),
        indexing.Searched("projects_token", ("name",), ("labels",)).operation(),
        indexing.sql_index("projects_token_labels", "projects_token USING gin (labels)"),
    ]
