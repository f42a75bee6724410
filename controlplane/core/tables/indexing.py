"""
Indexes for tables of millions of rows, which migrations create while other programs write.

The search for a part of a text needs the extension pg_trgm of PostgreSQL. Without it, a search finds beginnings.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.db import DatabaseError, connection, migrations

from controlplane.core.tables.operations import OnPostgreSQL


class AddIndex(migrations.AddIndex):
    """
    Create an index without a lock on PostgreSQL. The migration must be ``atomic = False``.

    An index that a killed run has left is replaced, because it may be one that is not valid.
    """

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._change(to_state.apps.get_model(app_label, self.model_name), schema_editor, creates=True)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._change(from_state.apps.get_model(app_label, self.model_name), schema_editor, creates=False)

    def _change(self, model: Any, schema_editor: Any, *, creates: bool) -> None:
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        _drop(schema_editor, self.index.name)
        if creates:
            schema_editor.add_index(model, self.index, **_concurrently(schema_editor))


@dataclass(frozen=True)
class Searched:
    """
    The columns that the search of a table reads on PostgreSQL. Other databases read all rows.

    Attributes:
        beginnings: Columns that are searched in any case.
        parts: Columns that are searched only if the extension is there.
    """

    table: str
    beginnings: tuple[str, ...]
    parts: tuple[str, ...] = ()

    def create(self, schema_editor: Any) -> bool:
        """Create the indexes, and return whether the search then finds parts. The others are dropped."""
        has_trigrams = _has_trigrams(schema_editor.connection)
        if has_trigrams:
            columns = ", ".join(f"UPPER({name}::text) gin_trgm_ops" for name in (*self.beginnings, *self.parts))
            _create(schema_editor, trigram_index(self.table), f"{self.table} USING gin ({columns})")
        for name in self.beginnings:
            if has_trigrams:
                _drop(schema_editor, f"{self.table}_{name}_begin")
            else:
                _create(
                    schema_editor, f"{self.table}_{name}_begin", f"{self.table} (UPPER({name}::text) text_pattern_ops)"
                )
        return has_trigrams

    def drop(self, schema_editor: Any) -> None:
        for name in (trigram_index(self.table), *(f"{self.table}_{name}_begin" for name in self.beginnings)):
            _drop(schema_editor, name)

    def operation(self) -> OnPostgreSQL:
        """Return the operation of a migration that creates the indexes."""
        return OnPostgreSQL(self.create, self.drop)


TOKENS = Searched("projects_token", ("name",), ("labels",))
AUDIT = Searched("policies_auditentry", ("actor", "action", "object_label"), ("reason",))


def sql_index(name: str, what: str) -> OnPostgreSQL:
    """Return the operation that creates an index on PostgreSQL only, on *what*, such as "table USING gin (column)"."""
    return OnPostgreSQL(lambda editor: _create(editor, name, what), lambda editor: _drop(editor, name))


def _create(schema_editor: Any, name: str, what: str) -> None:
    _drop(schema_editor, name)  # an interrupted creation leaves an index of that name which is not valid
    schema_editor.execute(f"CREATE INDEX CONCURRENTLY {name} ON {what}", params=None)


def _drop(schema_editor: Any, name: str) -> None:
    way = "CONCURRENTLY " if _concurrently(schema_editor) else ""
    schema_editor.execute(f"DROP INDEX {way}IF EXISTS {name}", params=None)


def _concurrently(schema_editor: Any) -> dict[str, bool]:
    return {"concurrently": True} if schema_editor.connection.vendor == "postgresql" else {}


def _has_trigrams(database: Any) -> bool:
    """Return whether the database has the extension, after an attempt to create it."""
    with database.cursor() as cursor:
        with suppress(DatabaseError):  # it is not installed, or this user must not create it
            cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        cursor.execute("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'")
        return bool(cursor.fetchone()[0])


def trigram_index(table: str) -> str:
    """Return the name of the index of trigrams of a table."""
    return f"{table}_trigrams"


@cache
def finds_parts(table: str) -> bool:
    """
    Return whether a search in *table* may look for a part of a text, and not only for a beginning.

    It is asked once for each process, because only a migration changes it.
    """
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        valid = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid"
        cursor.execute(valid, [trigram_index(table)])
        return bool(cursor.fetchone()[0])
