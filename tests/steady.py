"""
A pytest plugin that asks whether a failure was one of a test or of a busy machine.

Many tests of this project watch real servers while several run at once. ``make test`` gives ``--ask-again``: if a few
tests failed, the run repeats them alone, once no other such run of this checkout is at work. Those that pass every time
are named as unsteady, and do not fail the run. A defect that shows whenever its test runs fails the run as before, and
so do more than a few unsteady tests.

``tests/unsteady.txt`` counts how often each test was unsteady, the most unsteady first. Whoever mends one at its cause
removes its line.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path

import pytest

UNSTEADY = Path("tests", "unsteady.txt")  # below the folder that has the configuration of pytest
MOST = 8  # more failures than these are no accident
TIMES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("steady").addoption(
        "--ask-again", action="store_true", help=f"repeat up to {MOST} failed tests alone, {TIMES} times"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.ask_again and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Failures(config.inipath), "steady-failures")


class Failures:
    """
    Remembers which tests failed, and repeats them after the others.

    Args:
        path: A file of the checkout. Whoever runs tests shares a lock on it, and whoever repeats some has it alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = open(path or __file__)  # noqa: SIM115  (until the process ends)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self.failed: dict[str, None] = {}  # as an ordered set
        self.outside_tests = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outside_tests = True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        yield  # the failures of this run are printed here
        if session.exitstatus != pytest.ExitCode.TESTS_FAILED or self.outside_tests or len(self.failed) > MOST:
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for again in range(1, TIMES + 1):
            print(f"\nrepeating what failed, alone ({again} of {TIMES})", flush=True)
            if run_alone(session.config, list(self.failed)):
                return
        print("\nunsteady: these failed beside others and passed alone", *self.failed, sep="\n  ", flush=True)
        count(session.config.rootpath / UNSTEADY, self.failed)
        session.exitstatus = pytest.ExitCode.OK


def run_alone(config: pytest.Config, tests: list[str]) -> int:
    """Run tests in one process with nothing beside it, and return its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=config.rootpath, check=False).returncode


def count(path: Path, tests: Iterable[str]) -> None:
    """Add one to the count of each of these tests."""
    lines = path.read_text().splitlines() if path.exists() else []
    counts = Counter({test: int(times) for times, _, test in (line.partition(" ") for line in lines)})
    counts.update([*tests])
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "".join(f"{times} {test}\n" for test, times in sorted(counts.items(), key=lambda row: (-row[1], row[0])))
    )
