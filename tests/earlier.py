"""A process that runs the library of 0.2.0, as the other half of a fleet during an upgrade."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.repository import ROOT
from tests.requires import require

COMMIT = "2a76dda"
SCRIPT = """
import json, sys
from enforcement import Limiter

url, calls = sys.argv[1], json.loads(sys.argv[2])
with Limiter(url, timeout=2.0) as limiter:
    decisions = [limiter.check(secret, cost, attributes=attributes) for secret, cost, attributes in calls]
    print(json.dumps([[decision.allowed, decision.source, decision.reason] for decision in decisions]))
"""


def library_of_0_2(folder: Path) -> Path:
    """Return a folder that has the library of 0.2.0, taken out of the repository's history."""
    archived = subprocess.run(["git", "archive", COMMIT, "enforcement"], cwd=ROOT, capture_output=True, check=False)
    found = "there" if archived.returncode == 0 else ""
    require(found, f"Commit {COMMIT}, which is 0.2.0, is missing: use a clone with the whole history.")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def check(library: Path, url: str, *calls: tuple[str, int, dict[str, str]]) -> list[tuple[bool, str, str]]:
    """Return what a process of 0.2.0 decides on calls of a secret, a cost and attributes: allowed, source, reason."""
    command = [sys.executable, "-c", SCRIPT, url, json.dumps(calls)]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(library)}
    done = subprocess.run(command, cwd=library, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)]
