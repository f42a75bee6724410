"""Which plugins are imported for which tests."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugins import TESTS, USED_IN, chosen, used_by
from tests.repository import ROOT

# Names the fixtures of tests that nothing defines, without trying each test.
UNKNOWN = """
def pytest_collection_modifyitems(items):
    for item in items:
        given = {"request", *getattr(getattr(item, "callspec", None), "params", ())}
        for name in set(item.fixturenames) - given - set(item._fixtureinfo.name2fixturedefs):
            print("unknown:", item.name, name)
"""


def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run pytest in a process of its own, which says what it imports."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    # With bytecode, since the assertions of all files would be rewritten otherwise.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPROFILEIMPORTTIME": "1", **more}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("paths", [[], [ROOT], [TESTS], [TESTS / "enforcement/model", TESTS]])
def test_all_tests_have_all_plugins(paths: list[Path]) -> None:
    """Also if only some folder above them is named."""
    assert list(used_by(paths)) == list(USED_IN)


def test_a_file_has_the_plugins_of_the_folder_it_is_in() -> None:
    """And a folder has those of the files in it."""
    assert list(used_by([TESTS / "enforcement/model/test_limits.py"])) == []
    assert "pytest_django.plugin" in set(used_by([TESTS / "controlplane/core/test_ids.py"]))
    assert "schemathesis.pytest.plugin" not in set(used_by([TESTS / "controlplane/core/test_ids.py"]))
    assert "schemathesis.pytest.plugin" in set(used_by([TESTS / "controlplane/web/restkit"]))


@pytest.mark.parametrize(
    ("arguments", "named", "found"),
    [
        (["-n", "2"], ["2"], []),
        (["enforcement/model::test_it"], ["enforcement/model::test_it"], [TESTS / "enforcement/model"]),
        (["--fast", "enforcement"], ["enforcement"], [TESTS / "enforcement"]),
    ],
)
def test_paths_are_those_that_exist(arguments: list[str], named: list[str], found: list[Path]) -> None:
    """The value of an option of another plugin looks like a path."""
    assert chosen(config(arguments, named)) == found


def test_fast_tests_have_the_plugins_of_their_files() -> None:
    """Schemathesis takes most of a second in each process, and its tests are slow."""
    fast = chosen(config(["-n", "2", "--fast"], ["2"]))

    assert TESTS / "enforcement/model/test_limits.py" in fast
    assert "schemathesis.pytest.plugin" not in set(used_by(fast))


def config(arguments: list[str], named: list[str]) -> Any:
    """Return what pytest knows of a command line that is typed in the folder of tests."""
    invocation = SimpleNamespace(dir=TESTS, args=arguments)
    return SimpleNamespace(invocation_params=invocation, known_args_namespace=SimpleNamespace(file_or_dir=named))


def test_every_place_with_a_plugin_exists() -> None:
    """A file that moves would leave its plugin behind."""
    assert [place for places in USED_IN.values() for place in places if not (TESTS / place).exists()] == []


@pytest.mark.parametrize("workers", [[], ["-n1", "-p", "no:_hypothesis_pytestplugin"]], ids=["alone", "by a worker"])
def test_a_unit_test_of_the_library_imports_little(workers: list[str]) -> None:
    """Its process starts in less than a second of the processor's time."""
    done = run(*workers, "tests/enforcement/model/test_calendars.py")
    imported = {line.rpartition("|")[2].split(".")[0].strip() for line in done.stderr.splitlines()}

    assert done.returncode == 0, done.stdout
    assert {"xdist", "pytest_asyncio"} <= imported
    assert imported & {"django", "faker", "hypothesis", "playwright", "schemathesis"} == set()


def test_no_test_needs_a_plugin_outside_of_its_folders(tmp_path: Path) -> None:
    """It would fail where its file runs alone, and pass beside the others. The control: a fixture of another folder."""
    places = [TESTS / place for named in USED_IN.values() for place in named]
    files = [path for path in TESTS.rglob("test_*.py") if not any(path.is_relative_to(place) for place in places)]
    (tmp_path / "fixtures_known.py").write_text(UNKNOWN)
    (tmp_path / "test_control.py").write_text("def test_control(transactional_db): ...")

    said = run(
        *("--collect-only", "-qq", "-p", "fixtures_known", *map(str, files), str(tmp_path)), PYTHONPATH=str(tmp_path)
    ).stdout

    assert "error" not in said, said[-2000:]
    assert re.findall(r"unknown: (.*)", said) == ["test_control transactional_db"]
