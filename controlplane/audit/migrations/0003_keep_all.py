"""Triggers of PostgreSQL that refuse every change of the audit: also of what is not sealed yet, and TRUNCATE."""

from importlib import import_module
from typing import Any

from django.db import migrations

# A command that deletes old entries sets the setting for its transaction. Nothing may change an entry.
FUNCTION = """
CREATE OR REPLACE FUNCTION sluicegate_keep_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('sluicegate.prune_audit', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'An audit entry must not be changed or deleted (%).', TG_OP
        USING HINT = 'The command prune_audit deletes old entries.', ERRCODE = 'integrity_constraint_violation';
END $$
"""
BEFORE = import_module("controlplane.audit.migrations.0002_triggers")


def create(apps: Any, schema_editor: Any) -> None:
    """Replace the function on PostgreSQL, and create the triggers for TRUNCATE."""
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute(FUNCTION, params=None)
    for table in BEFORE.TABLES:
        schema_editor.execute(
            f"CREATE TRIGGER sluicegate_keep_all_audit BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION sluicegate_keep_audit()"
        )


def drop(apps: Any, schema_editor: Any) -> None:
    """Drop the triggers for TRUNCATE, and restore the function of the migration before."""
    if schema_editor.connection.vendor != "postgresql":
        return
    for table in BEFORE.TABLES:
        schema_editor.execute(f"DROP TRIGGER sluicegate_keep_all_audit ON {table}")
    schema_editor.execute(BEFORE.FUNCTION.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"), params=None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0002_triggers")]

    operations = [migrations.RunPython(create, drop)]
