"""``python -m benchmarks drain [--quick]``: how fast workers bring usage from the store into PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """Run the measurement, which needs Django, in a process of its own. Return its exit code."""
    return subprocess.run([sys.executable, "-m", "tests.draining", *arguments], cwd=ROOT, check=False).returncode
