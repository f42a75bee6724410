"""Operations of migrations for PostgreSQL alone."""

from collections.abc import Callable
from typing import Any

from django.db.migrations.operations.base import Operation


class OnPostgreSQL(Operation):
    """
    Call functions with the schema editor, which need no models. ``RunPython`` would build all models first.

    Args:
        forwards: What the migration does.
        backwards: What takes it back.
    """

    reduces_to_sql = False

    def __init__(self, forwards: Callable[[Any], Any], backwards: Callable[[Any], Any]) -> None:
        self._forwards, self._backwards = forwards, backwards

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing that models say."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if schema_editor.connection.vendor == "postgresql":
            self._forwards(schema_editor)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if schema_editor.connection.vendor == "postgresql":
            self._backwards(schema_editor)
