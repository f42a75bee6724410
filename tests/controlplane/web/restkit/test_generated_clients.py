"""Clients that others generate from our OpenAPI document do the main job against a real server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pytest_django.live_server_helper import LiveServer

from tests.apart import FOLDER, program, python_of
from tests.repository import ROOT
from tests.requires import require
from tests.scale import scale

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.proof]
# The client of Python does the same in every run, and tests/openapi.py shows each change of the document.
with_npm = pytest.mark.skipif(scale(True, False), reason="compiles with npm's packages for half a minute: make proof")

CLIENTS = Path(__file__).parent / "clients"
SEEN = {
    "policy": ["api", "The API", [60]],
    "project": ["chat", "api", "true", "chat"],
    "tried": [True, 201, 1, ["name"]],
    "problems": [400, 412],
    "secrets": [True, True],
    "tokens": ["renamed", True, 90],
    "projects": ["chat"],
}
ACTIONS = {"policy.create", "project.create", "token.create", "token.update", "token.revoke", "override.delete"}


@pytest.fixture
def document(call: Any, tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_text(call("GET", "openapi.json").text)
    return path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Return what a command prints, or fail the test with its complaints."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def judge(printed: str) -> None:
    """Hold what a client has seen to what it did. Its pages have all tokens, each once, the newest first."""
    seen = json.loads(printed)
    pages, actions = seen.pop("pages"), set(seen.pop("actions"))

    assert seen == SEEN
    assert [len(page) for page in pages] == [2, 2]
    assert sorted(name for page in pages for name in page) == ["renamed", "token-0", "token-0", "token-2"]
    assert actions >= ACTIONS


def of_the_main_job(document: Path) -> None:
    """Leave out the operations of which the script does not even import the resource, and what they alone refer to."""
    used = set(re.findall(r"sluicegate_client\.api\.(\w+)", (CLIENTS / "main_job.py").read_text()))
    content = json.loads(document.read_text())
    content["paths"] = {path: methods for path, methods in content["paths"].items() if used & tags(methods)}
    schemas, needed = content["components"]["schemas"], set()
    while more := references([content["paths"], *map(schemas.get, needed)]) - needed:
        needed |= more
    content["components"]["schemas"] = {name: schemas[name] for name in schemas if name in needed}
    document.write_text(json.dumps(content))


def references(value: Any) -> set[str]:
    return set(re.findall(r"#/components/schemas/(\w+)", json.dumps(value)))


def tags(methods: dict[str, Any]) -> set[str]:
    return {tag for method in methods.values() if isinstance(method, dict) for tag in method.get("tags", ())}


def test_a_client_of_python_does_the_main_job(live_server: LiveServer, store, key, document, tmp_path) -> None:
    """
    As openapi-python-client makes it, without a warning that something was left out.

    A proof generates the client of all operations, which takes seconds.
    """
    scale(of_the_main_job, id)(document)
    ruff = {"PATH": f"{python_of('clients').parent}{os.pathsep}{os.environ['PATH']}"}
    made = tmp_path / "sluicegate_client"
    generate = [program("clients", "openapi-python-client"), "generate", "--path", document, "--output-path", made]

    said = run(*generate, "--meta", "none", "--fail-on-warning", cwd=tmp_path, **ruff)
    assert "Warning" not in said

    script = [python_of("clients"), CLIENTS / "main_job.py", live_server.url, key.secret]
    judge(run(*script, cwd=tmp_path, PYTHONPATH=str(tmp_path)))


def packages_of_npm() -> Path:
    """Return a folder with the packages of the lock file, which are kept until it changes."""
    npm = require(shutil.which("npm"), "npm is missing: install it with 'apt-get install npm'.")
    lock = (CLIENTS / "package-lock.json").read_bytes()
    folder = FOLDER / f"npm-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (folder / "stamp").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CLIENTS / name, folder)
        run(npm, "ci", "--no-audit", "--no-fund", cwd=folder)
        (folder / "stamp").touch()
    return folder


@with_npm
def test_a_client_of_typescript_does_the_main_job(live_server: LiveServer, store, key, document, tmp_path) -> None:
    """As openapi-typescript describes it. The compiler finds each field that the script uses."""
    packages = packages_of_npm()
    for name in ("node_modules", "package.json"):
        (tmp_path / name).symlink_to(packages / name)
    shutil.copy(CLIENTS / "main_job.ts", tmp_path)
    beside = packages / "node_modules" / ".bin"

    run(beside / "openapi-typescript", document, "--default-non-nullable=false", "-o", "sluicegate.ts", cwd=tmp_path)
    options = "--strict --noEmitOnError --target es2022 --module nodenext --skipLibCheck --outDir out --types node"
    run(beside / "tsc", *options.split(), "main_job.ts", cwd=tmp_path)
    (tmp_path / "out" / "package.json").write_text('{"type": "module"}')

    judge(run("node", "out/main_job.js", live_server.url, key.secret, cwd=tmp_path))


def problems_of(document: Path, folder: Path) -> list[str]:
    """Return the rules of Redocly's set "recommended" that a document breaks, of warnings too. It asks no server."""
    redocly = packages_of_npm() / "node_modules" / ".bin" / "redocly"
    silent = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    command = [redocly, "lint", "--extends", "recommended", "--format", "json", document]
    printed = subprocess.run(
        command, cwd=folder, env={**os.environ, **silent}, capture_output=True, text=True, timeout=120, check=False
    )
    return [problem["ruleId"] for problem in json.loads(printed.stdout)["problems"]]


@with_npm
def test_the_document_keeps_the_rules_that_redocly_recommends(document, tmp_path) -> None:
    """All of them, without an exception of our own. A document that breaks one is refused."""
    broken = json.loads(document.read_text())
    del broken["paths"]["/api/v1/tokens"]["get"]["operationId"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))

    assert problems_of(document, tmp_path) == []
    assert problems_of(tmp_path / "broken.json", tmp_path) == ["operation-operationId"]


def test_the_lock_file_names_no_registry() -> None:
    """So it installs from any mirror. Each package has the hash of its archive."""
    packages = json.loads((CLIENTS / "package-lock.json").read_text())["packages"]

    assert ROOT in CLIENTS.parents
    assert [name for name, package in packages.items() if "resolved" in package] == []
    assert [name for name, package in packages.items() if name and "integrity" not in package] == []
