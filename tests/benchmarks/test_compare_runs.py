"""Two trees are compared from the command line; how fast they are, only a long run can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare.names import SHAPES, STORE_TIME
from benchmarks.compare.tree import check, take
from benchmarks.compare.trees import NoTree, tree_of
from enforcement import Decision
from tests.repository import ROOT, copy_code
from tests.scale import scale

SLOW = """
_fast = Decision.headers
def _slow(self, preset="ietf"):
    for _ in range(5_000): pass
    return _fast(self, preset)
Decision.headers = _slow
"""
"""Makes reading the headers several times as slow, so that a busy machine cannot hide it."""


def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "benchmarks", "compare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.proof
def test_every_shape_is_measured_and_printed(tmp_path: Path) -> None:
    """No shape is left out in silence. A proof asks for all of them, others for every second one."""
    output, shapes = tmp_path / "figures.json", scale(SHAPES[::2], SHAPES)

    done = compare("HEAD", ".", "--quick", "--only", ",".join(shapes), "--json", str(output))

    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert {row["name"] for row in rows} == {*shapes, *(STORE_TIME[name] for name in shapes if name in STORE_TIME)}
    assert [row["name"] for row in rows if row["name"] not in done.stdout or not 0 < row["low"] <= row["high"]] == []


def test_a_slower_tree_is_worse_and_the_exit_code_says_so(tmp_path: Path) -> None:
    """A change that slows a shape down is found, and only in that shape."""
    copy_code(ROOT / "enforcement", tmp_path / "enforcement")
    module = Path(Decision.__module__.replace(".", "/") + ".py")
    with (tmp_path / module).open("a") as source:
        source.write(SLOW)

    done = compare(".", str(tmp_path), "--only", "headers", "--pairs", "2")

    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[1].split()[0] == "headers"
    assert done.stdout.splitlines()[1].endswith("worse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "."], "tree: must be the path of a checkout or a revision, got 'nowhere'"),
        ([".", ".", "--only", "checks"], "got 'checks'"),
        ([".", ".", "--pairs", "1"], "must be an integer of at least 2, got '1'"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: list[str], message: str) -> None:
    """A mistake in the command ends with a sentence and exit code 2."""
    done = compare(*arguments)

    assert done.returncode == 2
    assert message in done.stderr


def test_a_revision_is_checked_out_only_while_it_is_needed() -> None:
    """Nothing is left of a checkout, nor does git remember it."""
    with tree_of("HEAD") as tree:
        assert (tree / "enforcement" / "__init__.py").is_file()

    assert not tree.exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(tree) not in listed


def test_a_name_that_is_neither_path_nor_revision_is_refused() -> None:
    """An option of git is no revision either."""
    with pytest.raises(NoTree), tree_of("--all"):
        pass


def test_a_worker_notices_the_package_of_another_tree(tmp_path: Path) -> None:
    """Only the tree's own enforcement may be measured."""
    with pytest.raises(ImportError, match="must be"):
        take(str(tmp_path))  # enforcement is imported already, from here
    check(f"{tmp_path}/enforcement/__init__.py", str(tmp_path))
