"""What is installed: the wheel, with everything that a program needs and that a type checker reads."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import enforcement
from enforcement.lua import library_source
from tests.repository import ROOT, tracked_files
from tests.scale import scale

CONSUMER = """
import asyncio

from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from enforcement import Decision, Denied, Limit, Limiter, aio
from enforcement.doors import flask as flask_door, starlette as starlette_door
from enforcement.exporters.prometheus import SluicegateCollector
from enforcement.stats import Stats
from enforcement.testing import Clock, Published, assert_limited

LIMIT = Limit.parse("5/minute")


def decide(limiter: Limiter, token: str) -> int:
    decision: Decision = limiter.check(token, costs={"tokens": 3}, attributes={"path": "/"})
    allowed: bool = decision.allowed
    remaining: int | None = limiter.hit([LIMIT], "user:42").remaining
    try:
        with limiter.admit(LIMIT, "user:42") as admission:
            admission.settle(2)
    except Denied as denied:
        raise SystemExit(denied.decision.reason) from denied
    return (remaining or 0) if allowed else 0


async def decide_awaited(limiter: aio.Limiter) -> dict[str, str]:
    async with limiter.admit(LIMIT, "user:42") as admission:
        await admission.settle(1)
    return (await limiter.hit(LIMIT, "user:42")).headers("ietf")


async def decide_in_a_task(limiter: aio.Limiter) -> str:
    @limiter.limited("2/hour", key="mail:{user_id}")
    async def send(user_id: int, text: str) -> str:
        return text

    return await asyncio.create_task(send(7, text="one"))


def test_limits(limiter: Limiter, clock: Clock, published: Published) -> None:
    clock.advance(seconds=1)
    published.policy("api", LIMIT)
    denial: Decision = assert_limited(limiter, published.token(policy="api"), admits=5)
    stats: Stats = limiter.stats()
    SluicegateCollector(limiter)
    print(denial.limit, stats.lease_share)


def serve() -> Flask:
    app, asgi = Flask(__name__), Starlette()
    flask_door.install(app, default=flask_door.check())
    starlette_door.install(asgi, default=starlette_door.limited("9/hour", key=lambda asked: asked.headers["X-Team"]))

    @flask_door.limited("5/minute", key=lambda asked: asked.headers.get("X-Team"), costs=2, methods=["POST"])
    def view(number: int) -> str:
        return str(number)

    @starlette_door.limited(LIMIT, key="ip")
    async def endpoint(request: Request) -> Response:
        return Response(view(number=7))

    app.get("/")(view)
    asgi.router.routes.append(Route("/", endpoint))
    return app


def wrong(limiter: Limiter) -> str:
    return limiter.hit("5/minute", "user:42")
"""


# That the marker is in the wheel is shown by every run, and that the library has types by `make lint`.
TYPES = pytest.mark.skipif(not scale(False, True), reason="a type checker reads all frameworks: make proof")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel; nothing is fetched to build it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (made,) = folder.glob("*.whl")
    return zipfile.ZipFile(made)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, and beside it what it depends on; return its Python."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    wheel.extractall(site)
    # Only the folder, and not what stands in its own .pth files: one of them names this checkout.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False, env={})


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    """Not one module, function or template is forgotten, and nothing else is in it."""
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    present = {str(path.relative_to(ROOT)) for path in tracked_files()}

    templates = {f"controlplane/{name}" for name in present if name.startswith("templates/")}
    assert {name for name in present if name.startswith(("enforcement/", "controlplane/"))} | templates == shipped
    assert {name.partition("/")[0] for name in shipped} == {"enforcement", "controlplane"}
    assert {"enforcement/py.typed", "enforcement/lua/decide.lua"} <= shipped


def test_the_wheel_says_what_it_needs(wheel):
    """The library alone needs two packages; all others belong to an extra. Two commands, no plugin."""
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    (entries,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", wheel.read(metadata).decode(), re.MULTILINE)

    assert sorted(needed) == ["hiredis", "redis"]
    assert wheel.read(entries).decode().split() == [
        "[console_scripts]",
        *("sluicegate", "=", "enforcement.cli:main"),
        *("sluicegate-admin", "=", "enforcement.cli.admin:main"),
    ]


def test_the_installed_library_has_its_functions(installed, tmp_path):
    """They are read from the package, wherever it lies, and are those of this checkout."""
    script = (
        "import enforcement, enforcement.lua as lua; print(enforcement.__file__); print(lua.library_source(), end='')"
    )
    done = run(installed, "-c", script, cwd=tmp_path)
    where, _, source = done.stdout.partition("\n")

    assert Path(where).is_relative_to(installed.parent.parent), done.stderr
    assert source == library_source()


def test_the_installed_command_runs(installed, tmp_path):
    """It says which version it is, the same as the package's metadata."""
    script = "from importlib.metadata import version; print(version('sluicegate'))"
    declared = run(installed, "-c", script, cwd=tmp_path).stdout

    assert declared
    assert run(installed, "-m", "enforcement", "--version", cwd=tmp_path).stdout == f"sluicegate {declared}"


def test_code_that_was_copied_knows_its_version(tmp_path):
    """A container has the folder and no installation. Its instances would all report version 0."""
    shutil.copytree(ROOT / "enforcement", tmp_path / "enforcement", ignore=shutil.ignore_patterns("__pycache__"))
    script = "import enforcement; print(enforcement.__version__)"
    command = [sys.executable, "-S", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=True)

    assert done.stdout == f"{enforcement.__version__}\n"


@pytest.mark.proof
@TYPES
def test_a_strict_type_checker_reads_the_installed_library(installed, tmp_path):
    """A program that uses it rightly has no error, and the one line that does not has one."""
    (tmp_path / "consumer.py").write_text(CONSUMER)
    wrong = CONSUMER.splitlines().index('    return limiter.hit("5/minute", "user:42")') + 1
    done = run(sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, "consumer.py", cwd=tmp_path)
    errors = re.findall(r"^consumer\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)

    assert set(errors) == {(str(wrong), "arg-type"), (str(wrong), "return-value")}, done.stdout + done.stderr


@pytest.mark.proof
@TYPES
def test_control_without_its_marker_the_library_has_no_types(installed, tmp_path):
    """The check reads what is installed, and not this checkout."""
    (marker,) = installed.parent.parent.glob("lib/python*/site-packages/enforcement/py.typed")
    marker.unlink()
    (tmp_path / "consumer.py").write_text("import enforcement\n")
    done = run(sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, "consumer.py", cwd=tmp_path)
    marker.touch()

    assert "missing library stubs or py.typed marker" in done.stdout
