"""A check that is left out while nothing has changed."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import unchanged
from tests.repository import ROOT


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., int]:
    """Return a function that says how often a check has run, after it was asked for once more."""
    root = tmp_path / "root"
    for name in ("code/a.py", "code/sub/b.py", "beside.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / ".gitignore").write_text("*.pyc\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "code/a.py"], cwd=root, check=True)
    log = tmp_path / "log"

    def ask(script: str = "true") -> int:
        command = ["sh", "-c", f"echo run >> {log}; {script}"]
        unchanged.run("check", ["code"], command, root=root, passed=tmp_path / "passed")
        return len(log.read_text().splitlines())

    ask.root = root
    return ask


def test_a_check_runs_once(check) -> None:
    """Files that it does not depend on, or that git ignores, change nothing."""
    assert [check(), check()] == [1, 1]
    (check.root / "beside.py").write_text("new")
    (check.root / "code" / "a.pyc").write_text("new")

    assert check() == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "code/a.py").write_text("# code/A.py\n"),
        lambda root: (root / "code/sub/b.py").write_text("changed"),
        lambda root: (root / "code/new.py").write_text(""),
        lambda root: (root / "code/a.py").unlink(),
        lambda root: (root / "code/a.py").rename(root / "code/c.py"),
        lambda root: (root / "code/sub/b.py").rename(root / "code/b.py"),
    ],
    ids=["tracked", "untracked", "added", "removed", "renamed", "moved"],
)
def test_a_changed_file_runs_it_again(check, change) -> None:
    """Be the file tracked or not."""
    check()
    change(check.root)

    assert [check(), check()] == [2, 2]


def test_another_command_or_version_runs_it_again(check, monkeypatch, tmp_path) -> None:
    """A new version of a tool may find more."""
    assert [check(), check("true again"), check("true again")] == [1, 2, 2]
    (tmp_path / "packages" / "tool-2.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(unchanged.sysconfig, "get_path", lambda name: str(tmp_path / "packages"))
    assert [check("true again"), check("true again")] == [3, 3]
    monkeypatch.setattr(unchanged.sys, "version", "3.99")

    assert check("true again") == 4


def test_a_check_that_fails_runs_again(check) -> None:
    """Until it passes, also if it had passed before with other files."""
    assert [check("false"), check("false")] == [1, 2]


def test_a_file_that_changes_during_a_check_runs_it_again(check) -> None:
    """Who knows which of the two it has read."""
    assert [check("echo more >> code/a.py"), check("echo more >> code/a.py")] == [1, 2]


def test_its_exit_code_is_that_of_the_check(tmp_path) -> None:
    """Else `make lint` would go on."""
    codes = [unchanged.run("check", ["Makefile"], ["sh", "-c", f"exit {code}"], passed=tmp_path) for code in (3, 0, 0)]

    assert codes == [3, 0, 0]


def test_what_the_makefile_names_exists() -> None:
    """A path that matches nothing would never run a check again."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    named = [line.partition(" -- ")[0].split()[2:] for line in text.splitlines() if line.startswith("\t$(UNCHANGED)")]

    assert len(named) == 2
    assert [path for paths in named for path in paths if not (ROOT / path).exists()] == []
