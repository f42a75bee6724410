"""How tests that commit leave an empty database: row by row, and without what no test changes."""

from functools import cache

from django.db import connections, transaction
from django.test import TransactionTestCase

# Django's way is to empty these, too, and to fill them again after each test, which takes a tenth of a second.
KEPT = {"django_content_type", "auth_permission"}


def empty(case: TransactionTestCase) -> None:
    """
    Delete all rows of all tables, but for content types and permissions.

    PostgreSQL makes new files for each table and index that is truncated; a few rows are deleted much faster. Foreign
    keys are checked at the end of the transaction, so that the order of the tables does not matter.
    """
    for name in case._databases_names(include_mirrors=False):
        connection = connections[name]
        deletions = _deletions(name)
        connection.ensure_connection()
        if connection.vendor == "postgresql":
            with transaction.atomic(using=name), connection.cursor() as cursor:
                # Else a trigger keeps what is sealed.
                cursor.execute(f"SET LOCAL sluicegate.prune_audit = 'on';{deletions}")
        else:
            connection.connection.executescript(f"BEGIN IMMEDIATE;{deletions};COMMIT")


@cache
def _deletions(name: str) -> str:
    """Return the statements, which are the same after each test: one that undoes migrations does them again."""
    connection = connections[name]
    tables = set(connection.introspection.django_table_names(only_existing=True, include_views=False)) - KEPT
    return ";".join(f"DELETE FROM {connection.ops.quote_name(table)}" for table in sorted(tables))
