"""Where the two trees are: a folder that is there, or a revision that is checked out for as long as it is needed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class NoTree(ValueError):
    """What was named is neither a checkout nor a revision."""


@contextmanager
def tree_of(name: str) -> Iterator[Path]:
    """
    Give the folder of a tree while a block lasts.

    Args:
        name: The path of a checkout, or a revision of this repository.
    Raises:
        NoTree: It is neither.
    """
    folder = Path(name).resolve()
    if (folder / "enforcement" / "__init__.py").is_file():
        yield folder
        return
    commit = _commit(name)
    with tempfile.TemporaryDirectory(prefix="sluicegate-compare-") as temporary:
        checkout = Path(temporary).resolve() / "tree"
        _git("worktree", "add", "--detach", str(checkout), commit)
        try:
            yield checkout
        finally:
            _git("worktree", "remove", "--force", str(checkout))


def _commit(name: str) -> str:
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").strip()
    except subprocess.CalledProcessError as exc:
        raise NoTree(f"tree: must be the path of a checkout or a revision, got {name!r}") from exc


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
