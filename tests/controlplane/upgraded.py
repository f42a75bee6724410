"""
A database of 0.2.0 that is migrated, and what is in it then, as lines of text:

    DATABASE_URL=... python -m tests.controlplane.upgraded FILE [--back]

migrates an empty database to 0.2.0, saves the rows of from_0_2/rows.json, migrates it on, and writes its schema and
rows to FILE. With --back, it migrates back to 0.2.0, and writes which lines are other than before.
"""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import django
from django.utils import timezone

FACTS = Path(__file__).parent / "from_0_2"
# The number of the last migration of each app in 0.2.0.
OF_0_2 = {"fleet": 1, "policies": 2, "projects": 2, "publishing": 1, "usage": 2}
# Usage is kept and added up by its age.
NOW = datetime(2026, 12, 2, 12, 0, tzinfo=UTC)
APPS = "controlplane."
# Their rows are made of others, in no order.
FILLED = ("publishing_publisheddocument", "statements_monthrow", "usage_decisioncount")


def main(file: str, *options: str) -> None:
    timezone.now = lambda: NOW
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    def migrate(targets: list[Any]) -> Any:
        executor = MigrationExecutor(connection)
        return executor.migrate(targets or executor.loader.graph.leaf_nodes()).apps

    names = MigrationExecutor(connection).loader.disk_migrations
    released = [key for key in names if key[0] in OF_0_2 and int(key[1][:4]) == OF_0_2[key[0]]]
    apps = migrate([*released, ("auth", "0012_alter_user_first_name_max_length")])
    save(apps, connection)
    before = set(lines(connection, names)) if options else set()
    migrate([])
    found = lines(connection, names)
    if options:
        new = {app for app, _ in names if names_of(app)} - OF_0_2.keys()
        migrate([*released, *((app, None) for app in sorted(new))])
        found = sorted(before ^ set(lines(connection, names)))
    Path(file).write_text("\n".join([*found, ""]))


def names_of(app: str) -> bool:
    from django.apps import apps

    return apps.get_app_config(app).name.startswith(APPS)


def save(apps: Any, connection: Any) -> None:
    """Save the rows of the fact, by the models of 0.2.0."""
    from django.core.management.color import no_style
    from django.db import transaction

    with transaction.atomic():
        rows = {apps.get_model(label): rows for label, rows in json.loads((FACTS / "rows.json").read_text()).items()}
        for model, some in rows.items():
            model._base_manager.bulk_create([model(**row) for row in some])
        with connection.cursor() as cursor:
            for statement in connection.ops.sequence_reset_sql(no_style(), rows):
                cursor.execute(statement)


def lines(connection: Any, names: Any) -> list[str]:
    """Return the schema and the rows of our own tables, each in one line, in an order of their own."""
    with connection.cursor() as cursor:
        tables = [name for name in connection.introspection.table_names(cursor) if is_ours(name, names)]
        schema = {"sqlite": of_sqlite, "postgresql": of_postgresql}[connection.vendor]
        found = [*schema(cursor, set(tables))]
        for table in tables:
            cursor.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            found += [row_line(table, dict(zip(columns, row, strict=True))) for row in cursor.fetchall()]
    return sorted(found)


def is_ours(table: str, names: Any) -> bool:
    app = table.partition("_")[0]
    return table == "auth_group" or (app in {app for app, _ in names} and names_of(app))


def row_line(table: str, row: dict[str, Any]) -> str:
    """Return a row as both databases have it, without what the migrations make up."""
    if row.get("actor") == "migrate" or (isinstance(row.get("id"), int) and table in FILLED):
        del row["id"]
    return f"row {table} { ({name: plain(row[name]) for name in sorted(row)}) }"


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return str(value.replace(tzinfo=None))
    if isinstance(value, date):
        return str(value)
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return json.dumps(json.loads(value), sort_keys=True)
    return int(value) if isinstance(value, bool) else value


def of_sqlite(cursor: Any, tables: set[str]) -> Iterator[str]:
    """Yield each column and constraint, each index and each trigger."""
    cursor.execute("SELECT tbl_name, name, type, sql FROM sqlite_master WHERE sql IS NOT NULL")
    for table, name, kind, sql in cursor.fetchall():
        if table not in tables:
            continue
        if kind == "table":
            inner = sql[sql.index("(") + 1 : sql.rindex(")")]
            yield from (f"{table}: {part.strip()}" for part in parts(inner))
        else:
            yield f"{table} {kind} {name}: {sql}"


def parts(text: str) -> Iterator[str]:
    """Yield what commas part, without those in brackets and quotes."""
    depth, begins, quoted = 0, 0, False
    for place, char in enumerate(text):
        quoted ^= char == "'"
        depth += (char == "(") - (char == ")") if not quoted else 0
        if char == "," and not depth and not quoted:
            yield text[begins:place]
            begins = place + 1
    yield text[begins:]


POSTGRESQL = {
    "column": """
        SELECT c.relname, a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
            || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END || ' ' || a.attidentity::text
            || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p')""",
    "constraint": """
        SELECT conrelid::regclass::text, conname || ' ' || pg_get_constraintdef(oid) || ' ' || convalidated::text
        FROM pg_constraint WHERE conrelid <> 0""",
    "index": """
        SELECT indrelid::regclass::text, pg_get_indexdef(indexrelid) || ' ' || indisvalid::text FROM pg_index""",
    "trigger": """
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal""",
    "table": """
        SELECT relname, relkind::text || ' ' || coalesce(reloptions::text, '') || ' '
            || coalesce(pg_get_partkeydef(oid), '') FROM pg_class WHERE relkind IN ('r', 'p')""",
    "partition": """
        SELECT i.inhparent::regclass::text, c.relname || ' ' || coalesce(reloptions::text, '') || ' '
            || coalesce(pg_get_partkeydef(oid), '') || pg_get_expr(relpartbound, oid)
        FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid WHERE relkind IN ('r', 'p')""",
    "sequence": """
        SELECT d.refobjid::regclass::text, s.seqrelid::regclass::text || ' ' || format_type(s.seqtypid, NULL)
        FROM pg_sequence s JOIN pg_depend d ON d.objid = s.seqrelid AND d.deptype IN ('a', 'i')""",
}


def of_postgresql(cursor: Any, tables: set[str]) -> Iterator[str]:
    """Yield each column, constraint, index, trigger and sequence, and the functions."""
    for kind, query in POSTGRESQL.items():
        cursor.execute(query)
        yield from (f"{table} {kind}: {text}" for table, text in cursor.fetchall() if table in tables)
    cursor.execute("SELECT proname, prosrc FROM pg_proc WHERE proname LIKE 'sluicegate%'")
    yield from (f"function {name}: {source!r}" for name, source in cursor.fetchall())


if __name__ == "__main__":
    main(*sys.argv[1:])
