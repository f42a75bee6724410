"""Columns that a migration adds which is not atomic, so that it can be run again after it was killed."""

from typing import Any

from django.db import migrations


class AddField(migrations.AddField):
    """
    Add a column in a transaction of its own, or nothing if an earlier run has added it.

    SQLite copies the whole table for it. Without the transaction, a kill in the middle would leave no table.
    """

    atomic = True

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if not self._is_there(schema_editor.connection, to_state.apps.get_model(app_label, self.model_name)):
            super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if self._is_there(schema_editor.connection, from_state.apps.get_model(app_label, self.model_name)):
            super().database_backwards(app_label, schema_editor, from_state, to_state)

    def _is_there(self, database: Any, model: Any) -> bool:
        with database.cursor() as cursor:
            present = database.introspection.get_table_description(cursor, model._meta.db_table)
        return model._meta.get_field(self.name).column in {one.name for one in present}
