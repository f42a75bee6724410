"""
Environments of their own for what some tests start: programs with large binaries, and packages with pins.

They are made under ``var/`` from the hashed files in ``docker/requirements`` when a test first asks for one, and kept
until the file changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.repository import ROOT
from tests.requires import require

REQUIREMENTS = ROOT / "docker" / "requirements"
FOLDER = ROOT / "var" / "apart"


def python_of(name: str) -> Path:
    """Return the Python of the environment of ``docker/requirements/NAME.txt``, or skip or fail the test."""
    requirements = REQUIREMENTS / f"{name}.txt"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may ask at the same time
        return _made(FOLDER / name, requirements)


def program(name: str, command: str) -> Path:
    """Return a program of that environment."""
    return python_of(name).parent / command


def _made(folder: Path, requirements: Path) -> Path:
    python, stamp = folder / "bin" / "python", folder / "stamp"
    version = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == version:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    # Without a pip of its own, and without bytecode, of which most is never used and the rest is written at its first
    # use. The proxy of LiteLLM uses nearly all of it and has to start in time.
    compiled = "--compile" if folder.name == "litellm" else "--no-compile"
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", compiled, "--require-hashes", "-r", requirements]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
    how = f"The packages of {requirements.name} could not be installed into {folder}: {done.stderr[-200:]}"
    require("" if done.returncode else str(python), how)
    stamp.write_text(version)
    return python
