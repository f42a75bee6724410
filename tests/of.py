"""
Find the tests of a module.

``python -m tests.of enforcement/plan/decision.py`` prints its test files, best first: those at its path, and then those
that run it, if ``tests.lines`` has recorded that, or else those that import it. ``enforcement.plan.decision`` names the
same module. ``python -m tests.of --share`` prints how many modules have a test file at their path, and which have none.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import PurePosixPath

from tests.lines import recorded
from tests.repository import ROOT

TREES = ("enforcement", "controlplane")
# Nothing in these has a test of its own.
WIRING = {"__init__.py", "__main__.py", "apps.py", "urls.py"}

# Parsing each file would take seconds.
IMPORT = re.compile(r"^ *from ((?:enforcement|controlplane)\b[\w.]*) import (\([^)]*\)|.*)", re.M)
NAME = re.compile(r"(?<![\w.])[^\W\d]\w*")


def modules() -> list[str]:
    """Return the paths of all modules that could have a test file."""
    paths = [path.relative_to(ROOT) for tree in TREES for path in (ROOT / tree).rglob("*.py")]
    return sorted(path.as_posix() for path in paths if path.name not in WIRING and "migrations" not in path.parts)


@cache
def test_files() -> tuple[str, ...]:
    """Return the paths of all test files."""
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")))


def at_its_path(module: str) -> list[str]:
    """
    Return the test files at the path of a module.

    Those of ``room/name.py`` are ``tests/room/test_name.py`` and ``tests/room/test_name_*.py``. A module that begins
    with an underscore leaves it out, and a command of Django is tested in the folder of its app.
    """
    path = PurePosixPath(module)
    room = str(path.parent).removesuffix("/management/commands")
    stem = f"tests/{room}/test_{path.stem.lstrip('_')}"
    return [file for file in test_files() if file == f"{stem}.py" or file.startswith(f"{stem}_")]


def files_that_run(module: str) -> list[str]:
    """Return the test files that run lines of a module, the one that runs most first, as ``tests.lines`` recorded."""
    ran = Counter(file for files in lines_recorded().get(module, {}).values() for file in files)
    return [file for file, _ in ran.most_common() if file in test_files()]


lines_recorded = cache(recorded)


def files_that_import(module: str) -> list[str]:
    """Return the test files that use names of a module, the one that uses them most first."""
    uses = {file: count for file in test_files() if (count := names_used(file)[module])}
    return sorted(uses, key=lambda file: (-uses[file], file))


@cache
def names_used(file: str) -> Counter[str]:
    """Return how often a file uses names of each module, where a name of a package counts for the module it is from."""
    text = (ROOT / file).read_text()
    source = {name: found for name, *origin in imports(text) if (found := defined_in(*origin))}
    return Counter(source[name] for name in NAME.findall(IMPORT.sub("", text)) if name in source)


def imports(text: str) -> Iterable[tuple[str, str, str]]:
    """Return the names that ``from package import name`` binds, with the package and the name there."""
    for package, several in IMPORT.findall(text):
        for name in re.sub("#.*", "", several).strip("()").split(","):
            original, _, given = name.partition(" as ")
            if original.strip():
                yield (given or original).strip(), package, original.strip()


def defined_in(package: str, name: str) -> str | None:
    """Return the path of the module that a name is from, None if there is none."""
    folder = package.replace(".", "/")
    for path in (f"{folder}/{name}.py", f"{folder}.py"):
        if (ROOT / path).is_file():
            return path
    return reexported(folder).get(name)


@cache
def reexported(folder: str) -> dict[str, str | None]:
    """Return the module that each name is from which a package imports."""
    package = ROOT / folder / "__init__.py"
    if not package.is_file():
        return {}
    own = folder.replace("/", ".")
    found = imports(package.read_text())
    return {name: defined_in(source, original) for name, source, original in found if source != own}


def files_nearby(module: str) -> list[str]:
    """Return the test files of the modules that use a module, of those that use these, or else those of its room."""
    seen = near = {module}
    while near := {user for user in modules() if any(names_used(user)[one] for one in near)} - seen:
        seen = seen | near
        if found := [file for user in sorted(near) for file in at_its_path(user)]:
            return found
    room = f"tests/{PurePosixPath(module).parent}/"
    return [file for file in test_files() if file.startswith(room)]


def tests_of(module: str) -> list[str]:
    """Return the test files of a module, best first."""
    others = files_that_run(module) or files_that_import(module)
    return list(dict.fromkeys([*at_its_path(module), *others] or files_nearby(module)))


def share() -> str:
    """Return of how many modules the path alone tells the tests, and the others by room."""
    every = modules()
    others = [module for module in every if not at_its_path(module)]
    rooms: dict[str, list[str]] = {}
    for module in others:
        room, _, name = module.rpartition("/")
        rooms.setdefault(room, []).append(name.removesuffix(".py"))
    found = len(every) - len(others)
    first = f"{found} of {len(every)} modules ({found / len(every):.0%}) have a test file at their path."
    return "\n".join([first, *(f"{room}: {', '.join(names)}" for room, names in rooms.items())])


def path_of(named: str) -> str:
    """Return the path of a module that is named by its path or with dots."""
    path = named if named.endswith(".py") else f"{named.replace('.', '/')}.py"
    path = path.removeprefix(f"{ROOT}/").removeprefix("./")
    if not (ROOT / path).is_file():
        sys.exit(f"{named}: no such module")
    return path


def main(named: Sequence[str]) -> None:
    if not named:
        sys.exit("usage: python -m tests.of MODULE ... | --share")
    if named == ["--share"]:
        print(share())
        return
    found = [file for module in map(path_of, named) for file in tests_of(module)]
    print("\n".join(dict.fromkeys(found)) or "no test file names it")


if __name__ == "__main__":
    main(sys.argv[1:])
