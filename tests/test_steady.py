"""Failures that are repeated alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT
from tests.steady import MOST, TIMES, UNSTEADY, count

# A test that fails in the runs whose numbers it is given. The count of its runs lies in a file.
FAILS_IN = """
import pathlib

def run(name, failing):
    count = pathlib.Path(__file__).with_name(name)
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    assert number not in failing
"""


def outcome(folder: Path, tests: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a test file in a folder of its own, without the plugins of the project: each takes time to be imported."""
    (folder / "test_it.py").write_text(FAILS_IN + tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", *options]
    plugins = {
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "tests.steady,xdist.plugin",
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **plugins}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_one_that_passes_alone_each_time_is_named(tmp_path: Path) -> None:
    """It ran once with the others, and then as often as it must pass."""
    tests = "def test_unsteady(): run('a', {0})\ndef test_other(): run('b', set())\n"
    done = outcome(tmp_path, tests, "--ask-again", "-n2")

    assert done.returncode == 0, done.stdout
    assert "unsteady: these failed beside others and passed alone\n  test_it.py::test_unsteady\n" in done.stdout
    assert (tmp_path / "a").read_text() == str(1 + TIMES)
    assert (tmp_path / "b").read_text() == "1"
    assert (tmp_path / UNSTEADY).read_text() == "1 test_it.py::test_unsteady\n"


SHARES = """
import fcntl

def test_shares():
    with open("pytest.ini") as file, open("shared", "a") as said:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            said.write("yes ")
        except BlockingIOError:
            said.write("no ")
    run("a", {0})
"""


def test_no_other_run_is_at_work_beside_a_repetition(tmp_path: Path) -> None:
    """Runs on two databases go on side by side, and then wait for each other."""
    outcome(tmp_path, SHARES, "--ask-again")

    assert (tmp_path / "shared").read_text() == "yes " + "no " * TIMES


def test_the_most_unsteady_come_first(tmp_path: Path) -> None:
    """Each run adds to what earlier runs have counted."""
    for tests in (["b", "a"], ["b"], ["c[1 2]"]):
        count(tmp_path / UNSTEADY, tests)

    assert (tmp_path / UNSTEADY).read_text() == "2 b\n1 a\n1 c[1 2]\n"


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param("def test_it(): run('a', range(9))", id="always"),
        pytest.param(f"def test_it(): run('a', {{0, {TIMES}}})", id="at the last repetition"),
        pytest.param("".join(f"def test_{i}(): run('{i}', {{0}})\n" for i in range(MOST + 1)), id="too many"),
        pytest.param("def test_it(): run('a', {0})\nimport nowhere", id="a file that cannot be read"),
    ],
)
def test_the_run_fails(tmp_path: Path, tests: str) -> None:
    """A failure that comes again, and more failures than a busy machine explains, stay failures."""
    done = outcome(tmp_path, tests, "--ask-again")

    assert done.returncode in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED), done.stdout
    assert "unsteady" not in done.stdout


def test_nothing_is_repeated_unless_it_is_asked_for(tmp_path: Path) -> None:
    """Somebody at work sees the first failure at once."""
    done = outcome(tmp_path, "def test_it(): run('a', {0})")

    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert (tmp_path / "a").read_text() == "1"
