"""``python -m benchmarks publish [--quick]``: a rebuild of the store and single changes, with a million tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """Run the measurement, which needs Django, in a process of its own. Return its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "tests.million.publishing", *arguments], cwd=ROOT, check=False
    ).returncode
