import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from enforcement.embedded import free_port
from tests.controlplane.forks import Process, start_manage
from tests.docs import tls
from tests.docs.ready import ready
from tests.repository import ROOT, copy_code
from tests.requires import chromium
from tests.scale import scale

START_SECONDS = 90
# What would make the checkout use another store, database or settings than a reader's has.
SLOW = {"SLUICEGATE_TIMEOUT_MS": "5000", "SLUICEGATE_LOOKUP_MS": "5000"}
"""A busy machine exceeds the time that a decision has for the store, and shows what an outage does."""
OURS = re.compile(r"SLUICEGATE_|DJANGO_|DATABASE_URL$|REDIS_URL$|SECRET_KEY$|PYTEST_|DEBUG$")


@dataclass(frozen=True)
class Stack:
    """A checkout in which ``manage.py up`` runs, and where its parts are, by what the pages call them."""

    checkout: Path
    environment: dict[str, str]
    places: dict[str, str]
    store_url: str

    def here(self, text: str) -> str:
        """Put the addresses of this machine into a page: the usual ports may be taken."""
        for usual, present in self.places.items():
            text = text.replace(usual, present)
        return text


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    """The system's Chromium: the registries carry none."""
    return {"executable_path": chromium(), "args": ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Path:
    """The repository as it would be cloned now, with its environment installed and its database migrated."""
    target = tmp_path_factory.mktemp("docs") / "sluicegate"
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for code in ("controlplane", "enforcement"):  # again, with its bytecode
        copy_code(ROOT / code, target / code)
    programs = target / ".venv" / "bin"
    programs.mkdir(parents=True)
    for path in (*Path(sys.prefix).iterdir(), *Path(sys.prefix, "bin").iterdir()):
        if path.name != "bin":
            (target / ".venv" / path.relative_to(sys.prefix)).symlink_to(path)
    (target / "var").mkdir(exist_ok=True)
    shutil.copy(migrated, target / "var" / "controlplane.sqlite3")
    return target


@pytest.fixture(scope="module")
def stack(checkout: Path) -> Iterator[Stack]:
    """What ``make up`` runs, in the checkout; for one module, since a dozen processes are not idle."""
    environment = {name: value for name, value in os.environ.items() if not OURS.match(name)}
    # The installed package is this repository: in the checkout, its own code has to come first.
    environment |= {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", **SLOW}
    log = checkout / "up.log"
    with log.open("w") as file:
        given = {**environment, "SLUICEGATE_PORT": str(free_port())}
        process = start_manage(checkout, ["up"], given, file.fileno())
    try:
        places = _announced(process, log)
        made, key = tls.certificate(checkout.parent)
        url = (checkout / "var" / "redis_url").read_text().strip()
        account, _, _ = url.removeprefix("redis://").rpartition("@")
        given = {**environment, "SLUICEGATE_REDIS_URL": url}
        commands = scale(ready(checkout, given, OURS.pattern), nullcontext())
        with commands, tls.terminator(int(places["127.0.0.1:6390"].rpartition(":")[2]), made, key) as port:
            places |= {
                ":PASSWORD@store.example:6380": f"{account}@127.0.0.1:{port}",
                "/etc/ssl/store-ca.pem": str(made),
                # One page sets and unsets it, one gives a service less, and a command tells it.
                " --deadline 300\n": " --deadline 10000\n",
                "the time budget is 25 ms": "the time budget is ... ms",
                "TIMEOUT_MS=1000\n": f"TIMEOUT_MS={SLOW['SLUICEGATE_TIMEOUT_MS']}\n",
                " SLUICEGATE_TIMEOUT_MS\n": "\n",
            }
            yield Stack(checkout, environment, places, url)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _announced(process: Process, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + START_SECONDS
    while "Stop            Ctrl-C" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    text = log.read_text()
    (web,) = re.findall(r"Admin and REST  http://127\.0\.0\.1:(\d+)/", text)
    (store,) = re.findall(r"Store           redis://:\*\*\*@127\.0\.0\.1:(\d+)/", text)
    proxies = re.findall(r"http://127\.0\.0\.1:(\d+)", re.findall(r"Proxies .*", text)[0])
    usual = ("8000", "6390", "8101", "8102", "8103", "8100", "8200", "8300", "9000")
    present = (web, store, *proxies, str(free_port()), str(free_port()), str(free_port()))
    pairs = list(zip(usual, present, strict=True))
    return {f"{before}{port}": f"{before}{found}" for before in ("127.0.0.1:", "--port ") for port, found in pairs}
