"""
A pytest plugin that migrates one database: all workers copy it, and on SQLite later runs do, too.

Each of them would take some seconds of CPU for the same migrations.
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.creation import BaseDatabaseCreation
from django.test import TransactionTestCase

from tests.emptying import empty
from tests.repository import ROOT
from tests.unchanged import digest_of

FOLDER = ROOT / "var" / "databases"
# Some branches and worktrees take turns in a checkout.
KEPT_FILES = 4
SETTINGS = ("INSTALLED_APPS", "AUTH_USER_MODEL", "DEFAULT_AUTO_FIELD", "MIGRATION_MODULES", "USE_TZ", "TIME_ZONE")
_NAME = re.compile(r"\b(?:controlplane|enforcement)(?:\.\w+)+")
_FROM = re.compile(r"\bfrom ((?:controlplane|enforcement)[\w.]*) import (\([^)]*\)|[^\n]*)")


class Template:
    """
    The database that is copied.

    Args:
        lock: A file that is locked while a worker makes its database.
    """

    def __init__(self, lock: Path) -> None:
        self._lock = lock
        self._turn = ExitStack()
        self._is_copied = False

    def begin(self) -> None:
        """Have the database copied if there is a template. Else let the others wait until this worker has made one."""
        self._turn.enter_context(self._locked())
        if name := self._name():
            creation = connections[DEFAULT_DB_ALIAS].creation
            creation.create_test_db = partial(_copied, creation, name)
            self._is_copied = True

    def finish(self) -> None:
        """Make a template of the database of this worker, if it has been migrated. Then it is another worker's turn."""
        with self._turn:
            if not self._is_copied:
                self._make()

    def remove(self) -> None:
        """Remove what must not be left after the run."""

    def _name(self) -> str | None:
        """Return the name of the template, or None if nobody has made it."""
        raise NotImplementedError

    def _make(self) -> None:
        raise NotImplementedError

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class File(Template):
    """
    A template on SQLite, which is kept for later runs.

    Args:
        folder: Where templates are.
        digest: Of all that decides what is in a database after its migrations.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "lock")
        self._folder, self.path = folder, folder / f"{digest}.sqlite3"

    def _name(self) -> str | None:
        return str(self.path) if self.path.exists() else None

    def _make(self) -> None:
        being_made = self._folder / "being-made"
        being_made.unlink(missing_ok=True)  # of a run that was killed
        with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
            cursor.execute("VACUUM INTO %s", [str(being_made)])
        being_made.rename(self.path)
        by_age = sorted(self._folder.glob("*.sqlite3"), key=lambda path: path.stat().st_mtime)
        for old in by_age[:-KEPT_FILES]:
            old.unlink()


class OnServer(Template):
    """
    A template on PostgreSQL, whose server lives as long as the run.

    Args:
        folder: Where the workers of the run meet. A file in it names the template.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "database.lock")
        self._note = folder / "database.name"
        self._is_ours = False

    def _name(self) -> str | None:
        return self._note.read_text() if self._note.exists() else None

    def _make(self) -> None:
        connection = connections[DEFAULT_DB_ALIAS]
        ours = connection.settings_dict["NAME"]
        name = f"{ours}_template"
        connection.close()  # nobody may use a database while it is copied
        with connection.creation._nodb_cursor() as cursor:
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}"')
            cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{ours}"')
        self._note.write_text(name)
        self._is_ours = True

    def remove(self) -> None:
        """Remove the template, if this worker has made it. Who comes later makes another one."""
        if not self._is_ours:
            return
        with self._locked():
            name = self._note.read_text()
            self._note.unlink()
            with connections[DEFAULT_DB_ALIAS].creation._nodb_cursor() as cursor:
                cursor.execute(f'DROP DATABASE "{name}"')


def migrated_digest(root: Path = ROOT) -> str:
    """Return a digest of all that decides what is in a database after its migrations."""
    # The tables are made by migrations, and content types and permissions by Django from the models.
    files = with_imports(root.glob("controlplane/**/migrations/*.py"), root)
    options = [str(getattr(settings, name)) for name in SETTINGS]
    models = [
        (model._meta.label, str(model._meta.verbose_name_raw), model._meta.default_permissions, model._meta.permissions)
        for model in apps.get_models(include_auto_created=True)
    ]
    return digest_of(files, repr((options, models)), root)


def with_imports(files: Iterable[Path], root: Path = ROOT) -> list[Path]:
    """Return files and what they name of the two trees, directly or not, in order."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found |= {path, *(package for folder in path.parents if (package := folder / "__init__.py").is_file())}
        text = path.read_text()
        names = {match[0] for match in _NAME.finditer(text)}
        for module, imported in _FROM.findall(text):
            names |= {f"{module}.{name}" for name in re.findall(r"\w+", imported)}
        for name in names:
            # The last part may be a name inside of the module.
            modules = (root.joinpath(*parts).with_suffix(".py") for parts in (name.split("."), name.split(".")[:-1]))
            waiting += filter(Path.is_file, modules)
    return sorted(path for path in found if path.is_relative_to(root))


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
    """Tests that commit leave an empty database behind in milliseconds, and the connection to the next test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty)
        # A new one begins without what PostgreSQL has read of the schema, and SQLite writes its log back at each end.
        patch.setattr(TransactionTestCase, "_should_reload_connections", lambda case: False)
        yield


@pytest.fixture(scope="session")
def database_template(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, django_db_use_migrations: bool
) -> Template | None:
    """Give what is copied, or None if there is nobody to share it with."""
    if not django_db_use_migrations:
        return None
    if connections[DEFAULT_DB_ALIAS].vendor == "sqlite":
        return File(FOLDER, migrated_digest())
    return None if worker_id == "master" else OnServer(tmp_path_factory.getbasetemp().parent)


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


@pytest.fixture(scope="session")
def migrated(database_template: File, django_db_setup: None) -> Path:
    """
    Give a migrated database of SQLite, if the tests use SQLite.

    A stack that begins with a copy of it has its first migrations done.
    """
    return database_template.path
