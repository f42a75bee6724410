from django.db import migrations, models


def keep_known_documents(apps, schema_editor):
    """Keep the documents of policies and projects that revisions have. Those of tokens were not kept before."""
    revisions = apps.get_model("publishing", "Revision").objects.order_by("number")
    kept = apps.get_model("publishing", "PublishedDocument").objects
    last = {}
    for number, changes in revisions.values_list("number", "changes").iterator(chunk_size=500):
        documents = changes.get("documents", {})
        changed = {name: one for name, one in documents.items() if name not in last or last[name] != one}
        last |= changed
        kept.bulk_create(
            [kept.model(name=name, revision=number, document=one) for name, one in changed.items()], batch_size=500
        )


class Migration(migrations.Migration):
    dependencies = [
        ("publishing", "0005_prices"),
    ]

    operations = [
        migrations.CreateModel(
            name="PublishedDocument",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=60)),
                ("revision", models.BigIntegerField()),
                ("document", models.JSONField(null=True)),
            ],
            options={"ordering": ["id"]},
        ),
        migrations.AddConstraint(
            model_name="publisheddocument",
            constraint=models.UniqueConstraint(fields=("name", "revision"), name="publishing_document_once_a_revision"),
        ),
        migrations.RunPython(keep_known_documents, migrations.RunPython.noop),
    ]
