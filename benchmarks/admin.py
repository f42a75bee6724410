"""``python -m benchmarks admin [--quick]``: each page of the admin with a million tokens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> int:
    """Run the measurement, which needs Django, in a process of its own. Return its exit code."""
    # The rows and the pages are those of a test, so they are beside the tests.
    return subprocess.run([sys.executable, "-m", "tests.million", *arguments], cwd=ROOT, check=False).returncode
