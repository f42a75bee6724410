"""Migrations that are no single transaction, killed before any of their statements, and run again."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from itertools import count
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.projects.models import Token
from tests.factories import TokenFactory
from tests.scale import scale

pytestmark = [pytest.mark.proof, pytest.mark.django_db(transaction=True)]

ENDS_BY_ITSELF = sorted(
    key
    for key, migration in MigrationLoader(None).disk_migrations.items()
    if not migration.atomic and migration.__module__.startswith("controlplane.")
)
FILLS = [key for key in ENDS_BY_ITSELF if key[0] == "projects"]
USED = datetime(2026, 11, 24, 23, 59, tzinfo=UTC)


class Killed(BaseException):
    """Raised in place of a statement. As by a kill, the open transaction is rolled back, and committed ones stay."""


class Run:
    """One migration, forwards and back."""

    def __init__(self, key: tuple[str, str]) -> None:
        loader = MigrationLoader(None)
        self.migration, self._before = loader.disk_migrations[key], loader.project_state(key, at_end=False)
        _ = self._before.apps  # made once here, and not by each of its copies

    def forwards(self) -> None:
        self._change(self.migration.apply)

    def backwards(self) -> None:
        self._change(self.migration.unapply)

    def _change(self, deed: Any) -> None:
        with connection.schema_editor(atomic=False) as editor:
            deed(self._before.clone(), editor)


@contextmanager
def killed_before(number: int) -> Iterator[list[bool]]:
    """Kill what runs in the block before its statement of this number, and tell by the list whether it came to that."""
    statements, killed = count(), []

    def execute(run: Any, *arguments: Any) -> Any:
        if next(statements) == number:
            killed.append(True)
            raise Killed
        return run(*arguments)

    with suppress(Killed), connection.execute_wrapper(execute):
        yield killed


def schema(*models: Any) -> dict[str, Any]:
    """Return the columns and indexes of the tables of models."""
    found = {}
    with connection.cursor() as cursor:
        for table in (model._meta.db_table for model in models):
            columns = connection.introspection.get_table_description(cursor, table)
            indexes = connection.introspection.get_constraints(cursor, table)
            found[table] = sorted((one.name, one.null_ok) for one in columns), dict(sorted(indexes.items()))
        if connection.vendor == "postgresql":
            cursor.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
            found["not valid"] = cursor.fetchall()
    return found


@pytest.fixture
def token(transactional_db) -> Token:
    return TokenFactory(last_used_at=USED, last_used_on=USED.date())


@pytest.fixture(params=scale(FILLS, ENDS_BY_ITSELF), ids=".".join)
def run(request, token) -> Run:
    return Run(request.param)


def test_a_killed_migration_is_run_again(token, run):
    """It loses no row and leaves the same tables, and so does the way back, whichever statement never came."""
    models = [ManagementKey, Token, AuditEntry]
    after = schema(*models)
    run.backwards()
    before = schema(*models)

    for number in count(2, scale(9, 1)):
        with killed_before(number) as forth:
            run.forwards()
        run.forwards()
        assert schema(*models) == after, number
        assert Token.objects.values_list("pk", "last_used_on").get() == (token.pk, date(2026, 11, 24)), number
        with killed_before(number) as back:
            run.backwards()
        run.backwards()
        assert schema(*models) == before, number
        if not forth and not back:
            break

    run.forwards()
    assert number > 2
