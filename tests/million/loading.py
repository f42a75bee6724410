"""Many rows into a table: by COPY on PostgreSQL, with its indexes made afterwards, and elsewhere by INSERT."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import batched
from typing import Any

from django.db import connection, models

AT_ONCE = 500


def load(model: type[models.Model], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows that are given by the names of their columns. Other columns get the default of their field."""
    fields = [field for field in model._meta.concrete_fields if not isinstance(field, models.AutoField)]
    base = {field.attname: field.get_default() for field in fields}
    whole = ({**base, **row} for row in rows)
    if connection.vendor == "postgresql":
        _copy(model, fields, whole)
    else:
        for some in batched(whole, AT_ONCE):
            model._base_manager.bulk_create([model(**row) for row in some])


def trust_keys() -> None:
    """Keep PostgreSQL from checking the foreign keys of millions of rows one by one, until the transaction ends."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL session_replication_role = replica")


def _copy(model: type[models.Model], fields: list[models.Field], rows: Iterable[dict[str, Any]]) -> None:
    names = [field.attname for field in fields]
    documents = {field.attname for field in fields if isinstance(field, models.JSONField)}
    columns = ", ".join(f'"{field.column}"' for field in fields)
    with connection.cursor() as cursor, cursor.copy(f"COPY {model._meta.db_table} ({columns}) FROM STDIN") as copy:
        for row in rows:
            for name in documents:
                row[name] = None if row[name] is None else json.dumps(row[name])
            copy.write_row([row[name] for name in names])


@contextmanager
def without_indexes(*tables: type[models.Model]) -> Iterator[None]:
    """Drop the indexes of these tables that no constraint needs, and create them again after the block."""
    names = [model._meta.db_table for model in tables]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT i.indexname, i.indexdef FROM pg_indexes i WHERE i.tablename = ANY(%s) AND NOT EXISTS "
            "(SELECT 1 FROM pg_constraint c WHERE c.conname = i.indexname)",
            [names],
        )
        found = cursor.fetchall()
        for name, _ in found:
            cursor.execute(f'DROP INDEX "{name}"')
    yield
    with connection.cursor() as cursor:
        cursor.execute("SET maintenance_work_mem = '512MB'")
        for _, definition in found:
            cursor.execute(definition.replace(" ON ONLY ", " ON "))  # those of all partitions of a table, too
