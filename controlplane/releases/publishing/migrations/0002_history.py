"""What each revision published, and how it reached the fleet."""

import functools
from itertools import batched
from typing import Any

import django.db.models.deletion
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

import controlplane.core.ids

AT_ONCE = 500


def fill(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """
    Set the kind of each revision, and keep its documents of policies and projects.

    Nobody knows how many instances there were. Documents of tokens were not kept before.
    """
    revisions = apps.get_model("publishing", "Revision").objects.order_by("number")
    kept = apps.get_model("publishing", "PublishedDocument").objects
    last: dict[str, Any] = {}
    for some in batched(revisions.iterator(chunk_size=AT_ONCE), AT_ONCE):
        rows = []
        for revision in some:
            revision.kind, revision.is_counted = kind_of(revision.changes), True
            documents = revision.changes.get("documents", {})
            changed = {name: one for name, one in documents.items() if name not in last or last[name] != one}
            last |= changed
            rows += [kept.model(name=name, revision=revision.number, document=one) for name, one in changed.items()]
        revisions.bulk_update(some, ["kind", "is_counted"])
        kept.bulk_create(rows, batch_size=AT_ONCE)


def kind_of(changes: dict[str, Any]) -> str:
    """Return the kind of a revision with these contents."""
    found = (("full", "full"), ("documents", "policy"), ("tokens", "token"))
    return next((kind for name, kind in found if changes.get(name)), "other")


class Migration(migrations.Migration):
    dependencies = [
        ("publishing", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Installation",
            fields=[
                (
                    "number",
                    models.PositiveSmallIntegerField(default=1, editable=False, primary_key=True, serialize=False),
                ),
                (
                    "name",
                    models.CharField(
                        default=functools.partial(controlplane.core.ids.new_id, *("ins",)),
                        editable=False,
                        max_length=40,
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PublishedChange",
            fields=[
                ("change", models.CharField(max_length=40, primary_key=True, serialize=False)),
                (
                    "revision",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="published",
                        to="publishing.revision",
                    ),
                ),
                (
                    "undoes",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="undone_by",
                        to="publishing.revision",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PublishedDocument",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=60)),
                ("revision", models.BigIntegerField()),
                ("document", models.JSONField(null=True)),
            ],
            options={
                "ordering": ["id"],
                "constraints": [
                    models.UniqueConstraint(fields=("name", "revision"), name="publishing_document_once_a_revision")
                ],
            },
        ),
        migrations.CreateModel(
            name="RepairedKey",
            fields=[
                ("key", models.CharField(max_length=128, primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=20)),
                ("project_id", models.CharField(blank=True, max_length=40)),
                ("reason", models.CharField(max_length=200)),
                ("times", models.BigIntegerField(default=0)),
                ("last_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["key"],
            },
        ),
        migrations.AddField(
            model_name="outboxentry",
            name="change",
            field=models.CharField(blank=True, db_default="", db_index=True, default="", max_length=40),
        ),
        migrations.AddField(
            model_name="revision",
            name="epoch",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="revision",
            name="instances",
            field=models.PositiveIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="revision",
            name="is_counted",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name="revision",
            name="kind",
            field=models.CharField(
                choices=[
                    ("full", "full"),
                    ("policy", "policy"),
                    ("override", "override"),
                    ("token", "token"),
                    ("other", "other"),
                ],
                db_default="other",
                default="other",
                max_length=10,
            ),
        ),
        migrations.AddField(
            model_name="revision",
            name="lag_ms",
            field=models.PositiveBigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="revision",
            name="live_on",
            field=models.PositiveIntegerField(null=True),
        ),
        migrations.AlterField(
            model_name="outboxentry",
            name="kind",
            field=models.CharField(
                choices=[
                    ("policy", "policy"),
                    ("project", "project"),
                    ("token", "token"),
                    ("global", "global"),
                    ("prices", "prices"),
                    ("emergency", "emergency"),
                    ("intakes", "intakes"),
                    ("all", "all"),
                    ("epoch", "epoch"),
                    ("reset", "reset"),
                ],
                max_length=10,
            ),
        ),
        migrations.AddIndex(
            model_name="revision",
            index=models.Index(fields=["kind", "-number"], name="publishing_revision_kind"),
        ),
        migrations.AddIndex(
            model_name="revision",
            index=models.Index(
                condition=models.Q(("is_counted", False)), fields=["number"], name="publishing_revision_open"
            ),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
