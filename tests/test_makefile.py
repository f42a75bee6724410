"""What `make` runs. Nothing is fetched: the Python of `make install` only writes down what it is asked."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository import ROOT
from tests.requires import require

# The first Python that the Makefile looks for. It makes an environment whose own Python has pip half a second later.
PYTHON = """#!/bin/bash
if [ "$1" = --version ]; then echo 'Python 3.14.0'; fi
if [ "$2" = venv ]; then
    echo venv >> log
    mkdir -p .venv/bin
    printf '#!/bin/bash\\necho "$*" >> log\\n[ -e .venv/pip ]\\n' > .venv/bin/python
    chmod +x .venv/bin/python
    sleep 0.5
    touch .venv/pip
fi
"""


@pytest.fixture
def install(tmp_path: Path) -> Callable[[], "subprocess.Popen[bytes]"]:
    """Return a function that begins `make install` in a folder of its own."""
    require(shutil.which("make"), "make is not installed (apt-get install make)")
    for name in ("Makefile", "pyproject.toml", "docker/requirements/dev.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.14").write_text(PYTHON)
    (tmp_path / "bin" / "python3.14").chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    return lambda: subprocess.Popen(["make", "install"], cwd=tmp_path, env=environment)


def installed(folder: Path) -> list[str]:
    """Return what was asked of Python, in order, without looks at whether pip is there."""
    return [line.split(" --")[0] for line in (folder / "log").read_text().splitlines() if "--version" not in line]


def test_two_commands_at_once_install_once(install, tmp_path):
    """The second would run pip in an environment that has none yet, and fail."""
    require(shutil.which("flock"), "flock is not installed (apt-get install util-linux)")
    both = [install(), install()]

    assert [process.wait(60) for process in both] == [0, 0]
    assert installed(tmp_path) == ["venv", "-m pip install", "-m pip install"]


def test_an_interrupted_installation_is_begun_again(install, tmp_path):
    """Ctrl-C while the environment is made leaves a Python without pip, at which every later command would end."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/false")

    assert install().wait(60) == 0
    assert installed(tmp_path) == ["venv", "-m pip install", "-m pip install"]


def test_a_second_command_installs_nothing(install, tmp_path):
    """The stamp says that everything is there."""
    assert [install().wait(60), install().wait(60)] == [0, 0]
    assert installed(tmp_path) == ["venv", "-m pip install", "-m pip install"]


def test_what_make_test_runs_on_sqlite_alone_is_there():
    """`make test` would run a test that was renamed on PostgreSQL too, and `make proof` would fail an hour later."""
    names = [line for line in (ROOT / "tests" / "sqlite.txt").read_text().splitlines() if not line.startswith("#")]
    files = {name: ROOT / name.partition("::")[0] for name in names}

    assert [name for name, file in files.items() if not file.exists()] == []
    tests = [(name.partition("::")[2].partition("[")[0], file) for name, file in files.items() if "::" in name]
    assert tests
    assert [test for test, file in tests if f"def {test}(" not in file.read_text()] == []
