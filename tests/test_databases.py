"""The database of a worker, be it migrated or a copy."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models.signals import post_migrate

from controlplane.objects.projects.models import Project
from tests import databases
from tests.databases import KEPT_FILES, SETTINGS, File, migrated_digest, with_imports
from tests.repository import ROOT


@pytest.mark.django_db
def test_all_migrations_have_run() -> None:
    """And what follows them: each app has its content types and permissions."""
    executor = MigrationExecutor(connection)

    assert executor.migration_plan(executor.loader.graph.leaf_nodes()) == []
    assert {row.app_label for row in ContentType.objects.all()} >= {"projects", "policies", "auth"}
    assert Permission.objects.filter(content_type__app_label="projects").exists()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a migration that imports a module, which imports another one."""
    files = {
        "controlplane/app/migrations/0001_initial.py": "from controlplane.core.tables import (\n    indexing,\n)\n",
        "controlplane/core/tables/__init__.py": "",
        "controlplane/core/tables/indexing.py": "import enforcement.model.limits\n",
        "controlplane/lists/other.py": "",
        "enforcement/model/limits.py": "DAY = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("controlplane/app/migrations/0001_initial.py", True),
        ("controlplane/app/migrations/0002_new.py", True),
        ("controlplane/core/tables/__init__.py", True),
        ("controlplane/core/tables/indexing.py", True),
        ("enforcement/model/limits.py", True),
        ("controlplane/lists/other.py", False),
    ],
)
def test_a_changed_migration_or_what_it_imports_makes_another_template(tree: Path, name: str, counts: bool) -> None:
    """What no migration imports does not."""
    before = migrated_digest(tree)
    (tree / name).write_text("DAY = 2\n")

    assert (migrated_digest(tree) != before) is counts


def test_what_migrations_import_is_found() -> None:
    """Of this repository: the helpers that write SQL are among it, and the library as a whole is not."""
    found = {path.relative_to(ROOT).as_posix() for path in with_imports(ROOT.glob("controlplane/**/migrations/*.py"))}

    assert {
        "controlplane/core/tables/indexing.py",
        "controlplane/core/tables/partitions.py",
        "controlplane/core/text.py",
    } <= found
    assert "controlplane/changes/audit/migrations/0001_initial.py" in found
    assert "enforcement/limiter.py" not in found


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_makes_another_template(monkeypatch, name: str) -> None:
    """Such as one app more."""
    before = migrated_digest()
    values = {one: getattr(settings, one) for one in SETTINGS}
    monkeypatch.setattr(databases, "settings", SimpleNamespace(**values | {name: "another"}))

    assert migrated_digest() != before


def test_another_permission_makes_another_template(monkeypatch) -> None:
    """Django writes them after the migrations."""
    before = migrated_digest()
    monkeypatch.setattr(Project._meta, "permissions", [("run", "Can run")])

    assert migrated_digest() != before


def test_only_django_writes_after_migrations() -> None:
    """What another receiver writes would have to be part of the digest."""
    modules = {receiver[1]().__module__ for receiver in post_migrate.receivers}

    assert {module.partition(".")[0] for module in modules} == {"django"}


@pytest.fixture
def template(transactional_db, tmp_path: Path) -> Callable[[str], File]:
    """Return a function that makes the template of a digest, in a folder of this test."""
    return lambda digest: File(tmp_path / "kept", digest)


def test_a_template_is_kept_and_is_no_template_of_another_digest(template, monkeypatch, tmp_path) -> None:
    """The next run copies it. It has all tables."""
    monkeypatch.setattr(connection.creation, "create_test_db", None)
    first, second, other = template("one"), template("one"), template("two")
    for one in (first, second, other):
        one.begin()
        one.finish()

    assert [one._is_copied for one in (first, second, other)] == [False, True, False]
    with closing(sqlite3.connect(tmp_path / "kept" / "one.sqlite3")) as file:
        assert file.execute("SELECT count(*) FROM django_migrations").fetchone() > (50,)


def test_one_of_two_runs_waits_for_the_other(template) -> None:
    """It copies what the other has made."""
    first, second = template("one"), template("one")
    first.begin()
    waiting = threading.Thread(target=second.begin)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()

    first.finish()
    waiting.join(10)

    assert second._is_copied


def test_old_templates_are_removed(template, tmp_path) -> None:
    """Each takes a megabyte."""
    for number in range(KEPT_FILES + 2):
        one = template(str(number))
        one.begin()
        one.finish()

    assert len(list((tmp_path / "kept").glob("*.sqlite3"))) == KEPT_FILES
    assert (tmp_path / "kept" / f"{KEPT_FILES + 1}.sqlite3").exists()
