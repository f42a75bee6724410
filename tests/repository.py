"""
Facts about the files that git tracks.

``python -m tests.repository`` prints every line that names a package registry, and fails if there is one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where packages come from is the machine's business: a file that names a registry works in one network only.
# The names are put together here, so that this file passes its own check.
REGISTRIES = [
    f"{name}.{domain}"
    for domain, names in {
        "org": ("pypi", "pythonhosted", "npmjs", "debian", "golang"),
        "com": ("npmjs", "yarnpkg"),
        "io": ("crates",),
    }.items()
    for name in names
]
_HINTS = [*REGISTRIES, "index-url", "index_url"]
_NAMED = re.compile("|".join([*map(re.escape, REGISTRIES), r"index[-_]url\s*[=:]"]), re.IGNORECASE)


def tracked_files() -> list[Path]:
    """Return every tracked file that is present, as absolute paths."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def files_in(paths: list[str], root: Path = ROOT) -> list[Path]:
    """Return every file of these paths that is present, in order, without those that git ignores."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [path for name in sorted(set(listed.split("\0")) - {""}) if (path := root / name).is_file()]


def copy_code(source: Path, target: Path) -> None:
    """
    Copy a folder of code with its bytecode.

    Without that, each process that runs the copy first compiles 100,000 lines. Bytecode counts only for a source of the
    same size and time, which the copy keeps.
    """
    being_written = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(source, target, ignore=being_written, dirs_exist_ok=True)


def registry_lines(files: list[Path]) -> list[str]:
    """Return 'file:line: text' for each line of *files* that names a package registry."""
    found = []
    for path in files:
        text = path.read_text(errors="replace")
        lowered = text.lower()
        if not any(hint in lowered for hint in _HINTS):  # five times as fast as the expression on each line
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if _NAMED.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(registry_lines(tracked_files())) or 0)
