"""
Run a check only if something that it depends on has changed since it passed:

    python -m tests.unchanged imports enforcement pyproject.toml -- lint-imports

writes below ``var/`` a digest of the files in these folders, of the command, and of the versions of Python and of all
packages. ``make clean`` removes it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from tests.repository import ROOT, files_in

PASSED = ROOT / "var" / "passed"


def digest(paths: list[str], command: list[str], root: Path = ROOT) -> str:
    """Return a digest of what a check depends on. Files that git does not track yet count, and ignored ones do not."""
    return digest_of(files_in(paths, root), repr(command), root)


def digest_of(files: Iterable[Path], more: str = "", root: Path = ROOT) -> str:
    """Return a digest of files below *root*, of more text, and of the versions of Python and of all packages."""
    packages = sorted(path.name for path in Path(sysconfig.get_path("purelib")).glob("*.dist-info"))
    found = hashlib.sha256(repr((sys.version, packages, more)).encode())
    for path in files:
        content = path.read_bytes()
        found.update(f"{path.relative_to(root)} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()


def run(name: str, paths: list[str], command: list[str], root: Path = ROOT, passed: Path = PASSED) -> int:
    """Return the exit code of a check, which is 0 without running it if nothing has changed."""
    note, before = passed / name, digest(paths, command, root)
    if note.exists() and note.read_text() == before:
        print(f"{name}: unchanged since it passed")
        return 0
    code = subprocess.run(command, cwd=root, check=False).returncode
    # What was edited while the check ran may not have been seen by it.
    if code == 0 and digest(paths, command, root) == before:
        passed.mkdir(parents=True, exist_ok=True)
        note.write_text(before)
    return code


def main(arguments: list[str]) -> int:
    (name, *paths), command = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    return run(name, paths, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
