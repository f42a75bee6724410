"""
A pytest plugin that migrates one database a run: the other workers copy it.

Each of them would take some seconds of CPU for the same migrations, all at the same time.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.creation import BaseDatabaseCreation
from django.test import TransactionTestCase

from tests.emptying import empty


class Template:
    """
    The database that is copied.

    Args:
        folder: Where the workers of a run meet: it has a lock, and a file that names the template once it is made.
    """

    def __init__(self, folder: Path) -> None:
        self._lock, self._file, self._name = folder / "database.lock", folder / "database", folder / "database.name"
        self._turn = ExitStack()
        self._is_copied = self._is_ours = False

    def begin(self) -> None:
        """Have the database copied if there is a template. Else let the others wait until this worker has made one."""
        self._turn.enter_context(self._locked())
        if self._name.exists():
            creation = connections[DEFAULT_DB_ALIAS].creation
            creation.create_test_db = partial(_copied, creation, self._name.read_text())
            self._is_copied = True

    def finish(self) -> None:
        """Make a template of the database of this worker, if it has been migrated. Then it is another worker's turn."""
        with self._turn:
            if not self._is_copied:
                self._make()

    def _make(self) -> None:
        connection = connections[DEFAULT_DB_ALIAS]
        if connection.vendor == "sqlite":
            name = str(self._file)
            with connection.cursor() as cursor:
                cursor.execute("VACUUM INTO %s", [name])
        else:
            ours = connection.settings_dict["NAME"]
            name = f"{ours}_template"
            connection.close()  # nobody may use a database while it is copied
            with connection.creation._nodb_cursor() as cursor:
                cursor.execute(f'DROP DATABASE IF EXISTS "{name}"')
                cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{ours}"')
        self._name.write_text(name)
        self._is_ours = True

    def remove(self) -> None:
        """Remove the template, if this worker has made it. Who comes later makes another one."""
        if not self._is_ours:
            return
        connection = connections[DEFAULT_DB_ALIAS]
        with self._locked():
            self._name.unlink()
            self._file.unlink(missing_ok=True)
            if connection.vendor == "postgresql":
                with connection.creation._nodb_cursor() as cursor:
                    cursor.execute(f'DROP DATABASE "{connection.settings_dict["NAME"]}_template"')

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _copied(creation: BaseDatabaseCreation, template: str, *, verbosity: int, autoclobber: bool, **_: Any) -> str:
    """Make the database as Django does, but from a template in place of migrations."""
    connection, name = creation.connection, creation._get_test_db_name()
    if connection.vendor == "postgresql":
        connection.settings_dict["TEST"]["TEMPLATE"] = template
    creation._create_test_db(verbosity, autoclobber)
    connection.close()
    if connection.vendor == "sqlite":
        shutil.copyfile(template, name)
    settings.DATABASES[connection.alias]["NAME"] = connection.settings_dict["NAME"] = name
    connection.ensure_connection()
    return name


@pytest.fixture(scope="session", autouse=True)
def quick_emptying() -> Iterator[None]:
    """Tests that commit leave an empty database behind in milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty)
        yield


@pytest.fixture(scope="session")
def database_template(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Template | None:
    """Give what the workers of a run share. A run without workers has nothing to share."""
    return None if worker_id == "master" else Template(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings: None, database_template: Template | None) -> None:
    """Runs before pytest-django makes the database."""
    if database_template:
        database_template.begin()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any, database_template: Any) -> Iterator[None]:
    """Runs after pytest-django has made the database."""
    if not database_template:
        yield
        return
    with django_db_blocker.unblock():
        database_template.finish()
    yield
    with django_db_blocker.unblock():
        database_template.remove()
