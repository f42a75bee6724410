"""
The package as it would be published: built from its own source archive, installed, and run outside of this checkout.

Only the wheel is installed into the new environment. What it depends on is borrowed from the environment of the tests.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from enforcement.embedded import ValkeyServer, free_port
from tests.repository import ROOT, tracked_files
from tests.scale import scale

pytestmark = pytest.mark.proof

PASSWORD = "correct horse battery staple"
DECISION = """
from enforcement import Limit, Limiter
import enforcement, controlplane

with Limiter.from_env() as limiter:
    print(limiter.hit(Limit.parse("5/minute"), "user:42"))
print(enforcement.__file__)
"""


def build(source: Path, kind: str, target: Path) -> Path:
    """Build an sdist or a wheel; nothing is fetched for that."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = target.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is made from the source archive alone."""
    folder = tmp_path_factory.mktemp("from-sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build(source, "wheel", folder)


@dataclass
class Installation:
    """An environment with the wheel, and a directory of its user."""

    bin: Path
    home: Path
    store_url: str

    def environment(self) -> dict[str, str]:
        named = {"SECRET_KEY": "0123456789abcdef" * 4, "SLUICEGATE_REDIS_URL": self.store_url}
        return named | {"DJANGO_SUPERUSER_PASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"}

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.home,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    # Only what is imported is compiled.
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", wheel], check=True, capture_output=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # The folder, and not what its own .pth files name: one of them is this checkout.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "home").mkdir()
    with ValkeyServer(persistent=False) as store:
        yield Installation(python.parent, folder / "home", store.url)


@pytest.fixture(scope="module")
def site(installed: Installation, migrated: Path) -> Iterator[str]:
    """The control plane of the installation, for a proof migrated by its command too, and served; its address."""
    if scale(True, False):
        (installed.home / "sluicegate-var").mkdir(0o700)
        shutil.copy(migrated, installed.home / "sluicegate-var" / "controlplane.sqlite3")
    else:
        done = installed.run("sluicegate-admin", "migrate", "--no-input", "-v", "0")
        assert done.returncode == 0, done.stderr
    account = ("--no-input", "--username", "ann", "--email", "ann@localhost")
    assert (done := installed.run("sluicegate-admin", "createsuperuser", *account)).returncode == 0, done.stderr
    port = free_port()
    command = [installed.bin / "python", "-m", "gunicorn", "controlplane.wsgi", "--bind", f"127.0.0.1:{port}"]
    server = subprocess.Popen(
        [*map(str, command), "--threads", "2", "--no-control-socket"],
        cwd=installed.home,
        env=installed.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            httpx2.get(url)
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
    server.kill()
    pytest.fail(f"The server did not answer: {server.communicate()[0]}")


@pytest.fixture(scope="module")
def logged_in(site: str) -> Iterator[Any]:
    """A visitor who has logged in to the admin."""
    with httpx2.Client(base_url=site, timeout=30, follow_redirects=True) as visitor:
        visitor.get("/")
        fields = {"username": "ann", "password": PASSWORD, "csrfmiddlewaretoken": visitor.cookies["csrftoken"]}
        first = visitor.post("/admin/login/?next=/admin/", data=fields, headers={"Referer": f"{site}/admin/login/"})
        assert first.url.path == "/admin/"
        yield visitor


def test_source_archive_holds_what_the_wheel_is_built_from_and_nothing_else(sdist: Path) -> None:
    """No test, no benchmark and no file of a developer's machine is published."""
    tops = ("enforcement/", "controlplane/", "templates/")
    alone = {"manage.py", "hatch_build.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", ".gitignore"}
    tracked = {path.relative_to(ROOT).as_posix() for path in tracked_files()}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}

    assert packed == {name for name in tracked if name.startswith(tops)} | alone | {"PKG-INFO"}


def test_wheel_of_the_source_archive_is_that_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Whoever builds from the archive gets the same files."""
    ours, theirs = (zipfile.ZipFile(path).namelist() for path in (build(ROOT, "wheel", tmp_path), wheel))

    assert sorted(ours) == sorted(theirs)


def test_wheel_says_who_made_it_and_what_one_may_do_with_it(wheel: Path) -> None:
    """The licence is in the wheel. The page of an index has no link that leads nowhere, and no extra is ours alone."""
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (files.read(name).decode() for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        (licence,) = (files.read(name).decode() for name in files.namelist() if name.endswith("/licenses/LICENSE"))

    assert "Apache License" in licence
    assert "Copyright 2026 the Sluicegate authors" in licence
    assert {"License-Expression: Apache-2.0", "Author: the Sluicegate authors"} <= set(metadata.splitlines())
    assert metadata.count("Classifier: ") > 10
    assert not re.findall(r"\]\(|Provides-Extra: dev|Project-URL", metadata)


def test_data_of_the_installation_is_in_the_directory_of_its_user(site: str, installed: Installation) -> None:
    """It is private. The commands use the database there."""
    assert (installed.home / "sluicegate-var" / "controlplane.sqlite3").is_file()
    assert (installed.home / "sluicegate-var").stat().st_mode & 0o077 == 0


def test_installed_library_decides(installed: Installation) -> None:
    """One decision, by the functions that the wheel brings, outside of this checkout."""
    done = installed.run("python", "-c", DECISION)
    decision, where = done.stdout.splitlines()

    assert decision == "<Decision ok by store: 5-per-minute 4>", done.stderr
    assert Path(where).is_relative_to(installed.bin.parent)


@pytest.mark.parametrize(
    "path", ["/admin/", "/admin/policies/policy/", "/admin/policies/policy/add/", "/docs/", "/docs/embedding/"]
)
def test_page_of_the_installation_opens_with_all_that_it_loads(logged_in: Any, path: str) -> None:
    """Templates and static files are there: those of the admin, of its theme and of the documentation."""
    answer = logged_in.get(path)
    loaded = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.text))

    assert answer.status_code == 200
    assert len(loaded) >= 2
    assert {name: logged_in.get(name).status_code for name in loaded} == dict.fromkeys(loaded, 200)


def test_rest_of_the_installation_is_documented(logged_in: Any) -> None:
    """The page of the API and its schema are served."""
    assert [logged_in.get(f"/api/v1/{page}").status_code for page in ("docs/", "openapi.json")] == [200, 200]
