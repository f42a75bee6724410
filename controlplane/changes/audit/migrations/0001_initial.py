"""Seals, and triggers of PostgreSQL that refuse every change of the audit. SQLite has one user, who may do all."""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from controlplane.core.tables.operations import OnPostgreSQL

# A command that deletes old entries sets the setting for its transaction. Nothing may change an entry.
FUNCTION = """
CREATE FUNCTION sluicegate_keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('sluicegate.prune_audit', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'An audit entry must not be changed or deleted (%).', TG_OP
        USING HINT = 'The command prune_audit deletes old entries.', ERRCODE = 'integrity_constraint_violation';
END $$
"""
TABLES = ("policies_auditentry", "audit_auditseal")
TRIGGERS = {
    "sluicegate_keep_audit": ("UPDATE OR DELETE", "ROW"),
    "sluicegate_keep_all_audit": ("TRUNCATE", "STATEMENT"),
}


def create(schema_editor: BaseDatabaseSchemaEditor) -> None:
    schema_editor.execute(FUNCTION, params=None)
    for table in TABLES:
        for name, (changes, each) in TRIGGERS.items():
            schema_editor.execute(
                f"CREATE TRIGGER {name} BEFORE {changes} ON {table} "
                f"FOR EACH {each} EXECUTE FUNCTION sluicegate_keep_audit()"
            )


def drop(schema_editor: BaseDatabaseSchemaEditor) -> None:
    for table in TABLES:
        for name in TRIGGERS:
            schema_editor.execute(f"DROP TRIGGER {name} ON {table}")
    schema_editor.execute("DROP FUNCTION sluicegate_keep_audit()")


class Migration(migrations.Migration):
    initial = True

    # The last that changes entries of before.
    dependencies = [("policies", "0004_audit")]

    operations = [
        migrations.CreateModel(
            name="AuditSeal",
            fields=[
                ("number", models.BigIntegerField(primary_key=True, serialize=False)),
                ("entry_id", models.CharField(max_length=40, unique=True)),
                ("digest", models.CharField(max_length=64)),
            ],
            options={
                "ordering": ["number"],
                "default_permissions": (),
            },
        ),
        OnPostgreSQL(create, drop),
    ]
