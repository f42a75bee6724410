"""Triggers of PostgreSQL that refuse to change or delete what is sealed. SQLite has one user, who may do everything."""

from typing import Any

from django.db import migrations

FUNCTION = """
CREATE FUNCTION sluicegate_keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('sluicegate.prune_audit', true) = 'on' THEN
        RETURN OLD;
    END IF;
    IF TG_TABLE_NAME = 'policies_auditentry' THEN
        IF NOT EXISTS (SELECT 1 FROM audit_auditseal WHERE entry_id = OLD.id) THEN
            IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'A sealed audit entry must not be changed or deleted (%).', TG_OP
        USING HINT = 'The command prune_audit deletes old entries.', ERRCODE = 'integrity_constraint_violation';
END $$
"""
TABLES = ("policies_auditentry", "audit_auditseal")


def create(apps: Any, schema_editor: Any) -> None:
    """Create the function and its triggers on PostgreSQL."""
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute(FUNCTION, params=None)
    for table in TABLES:
        schema_editor.execute(
            f"CREATE TRIGGER sluicegate_keep_audit BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION sluicegate_keep_audit()"
        )


def drop(apps: Any, schema_editor: Any) -> None:
    """Drop what :func:`create` has created."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for table in TABLES:
        schema_editor.execute(f"DROP TRIGGER sluicegate_keep_audit ON {table}")
    schema_editor.execute("DROP FUNCTION sluicegate_keep_audit()")


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_seals"), ("policies", "0009_audit_project")]

    operations = [migrations.RunPython(create, drop)]
