"""Databases of 0.2.0 on their way to this version and back, and those that have no way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder

from controlplane.objects.overrides.models import Override
from tests import postgres
from tests.controlplane.upgraded import FACTS
from tests.factories import LimitFactory, OverrideFactory, ProjectFactory
from tests.repository import ROOT
from tests.scale import scale

OF_0_2 = [("projects", "0002_partition_cap"), ("policies", "0002_initial")]


PROOF = pytest.mark.skipif(not scale(False, True), reason="migrating twice takes some seconds: make proof")


@contextmanager
def beside_that_of_the_tests() -> Iterator[str]:
    """Make an empty database on the server of PostgreSQL that the tests use, and yield its address."""
    name = f"{connection.settings_dict['NAME']}_of_0_2"
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
        yield f"{os.environ['DATABASE_URL'].rpartition('/')[0]}/{name}"
        cursor.execute(f'DROP DATABASE "{name}"')


def differences(url: str, folder: Path, kept: str, *options: str) -> list[str]:
    """Let another process make and migrate a database of 0.2.0, and compare what is in it with what is kept."""
    command = [sys.executable, "-m", "tests.controlplane.upgraded", folder / "found", *options]
    environment = {**os.environ, "DATABASE_URL": url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, expected = ({*path.read_text().splitlines()} for path in (folder / "found", FACTS / kept))
    return [*(f"- {line}" for line in sorted(expected - found)), *(f"+ {line}" for line in sorted(found - expected))]


@pytest.mark.skipif(connection.vendor == "sqlite", reason="so does make proof, on both databases")
@pytest.mark.django_db(transaction=True)
def test_a_database_of_0_2_gets_the_schema_and_the_rows_of_this_version(tmp_path):
    """Each column, constraint, index, trigger and row is as the many migrations of the development made it."""
    with beside_that_of_the_tests() as url:
        assert differences(url, tmp_path, "postgresql.txt") == []


@pytest.mark.proof
@PROOF
@pytest.mark.parametrize("way", [(), ("--back",)], ids=["forth", "back"])
@pytest.mark.parametrize("vendor", ["sqlite", "postgresql"])
def test_a_database_of_0_2_goes_forth_and_back(tmp_path, vendor, way):
    """On the way back, no table is other than before. Keys that 0.2 would take for global ones are revoked."""
    of_sqlite = nullcontext(f"sqlite:///{tmp_path}/of-0-2.sqlite3")
    with of_sqlite if vendor == "sqlite" else postgres.running() as url:
        assert differences(url, tmp_path, f"{vendor}{'-back' if way else ''}.txt", *way) == []


@pytest.fixture
def latest() -> Iterator[None]:
    """Other tests find the tables of the last migration again."""
    yield
    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes())


@pytest.mark.proof
@PROOF
@pytest.mark.django_db(transaction=True)
def test_overrides_that_0_2_would_misread_end_on_the_way_back(latest):
    """Those for one value would count for all values, and those that have ended would count again."""
    given = {"limit": LimitFactory(partition_by=["label.team"]), "token": None, "project": ProjectFactory()}
    OverrideFactory(**given, quota=7)
    Override.objects.update(ended_at=given["project"].created_at)
    OverrideFactory(**given, quota=5)
    OverrideFactory(**given, partition="label.team = web", quota=6)

    MigrationExecutor(connection).migrate(OF_0_2)
    with connection.cursor() as cursor:
        cursor.execute("SELECT quota FROM policies_override")
        assert cursor.fetchall() == [(5,)]

    executor = MigrationExecutor(connection)
    executor.migrate(executor.loader.graph.leaf_nodes())
    assert Override.with_ended.get().quota == 5


@pytest.mark.django_db
def test_a_database_of_a_version_that_was_not_released_is_refused():
    """Its tables have some of the columns already. Nothing is changed, and the message says which way there is."""
    recorder = MigrationRecorder(connection)
    recorder.record_applied("projects", "0003_help_texts")
    call_command("migrate", check_unapplied=True, skip_checks=False)  # a later version than this one
    recorder.record_unapplied("projects", "0003_columns")

    with pytest.raises(SystemCheckError, match=r"projects\.0003_help_texts, which is of no release") as caught:
        call_command("migrate", verbosity=0, skip_checks=False)

    assert "Restore a backup of 0.2" in str(caught.value)
    assert ("projects", "0003_columns") not in recorder.applied_migrations()
