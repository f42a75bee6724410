"""
A pytest plugin that measures test files, keeps the list of the fast ones, and runs the longest files first.

``tests/fast.txt`` lists the files that ``make check`` runs. ``tests/slow.txt`` lists the others with their seconds, so
that a run on two workers can begin with the longest. ``make test`` brings both up to date. ``tests/proof.txt`` is the
same for the longest files of ``make proof``, which rewrites it.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.browsers import browses
from tests.scale import VARIABLE

HERE = Path(__file__).parent
FAST, SLOW, PROOF = HERE / "fast.txt", HERE / "slow.txt", HERE / "proof.txt"
# Two bounds instead of one: a file that takes about a second would join and leave the list in turns.
ENTERS_SECONDS, LEAVES_SECONDS = 1.0, 1.5
# A slow file keeps its figure until it is this much slower or faster, for the same reason.
KEPT_FACTOR = 1.5
SHOWN = 10
# A file of the proofs that takes less ends soon, whenever it begins.
LONG_PROOF_SECONDS = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--fast", action="store_true", help="run only the files that tests/fast.txt lists")
    group.addoption(
        "--proof", action="store_true", help="run costly tests with their full numbers (see tests/scale.py)"
    )
    group.addoption("--no-browser", action="store_true", help="leave out tests with a browser")
    group.addoption("--update-tiers", action="store_true", help="rewrite tests/fast.txt and tests/slow.txt at the end")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all tests are collected: of what is made meanwhile hardly anything is garbage
    config.addinivalue_line("markers", "proof(times=1): has a costly form, with full numbers or run so many times")
    if config.option.proof:
        os.environ[VARIABLE] = "1"
    _refuse_part_of_the_tests(config)
    config.args[:] = by_folder(config.args)
    config.pluginmanager.register(SharedTime(), "tiers-shared-time")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FileTimes(config), "tiers-file-times")


def by_folder(named: Sequence[str]) -> list[str]:
    """
    Return the files of a command line with those of one folder together, else in their order.

    pytest 9.1 collects a folder anew for a file of a folder above it. Tests that are named after that file would not
    find the fixtures of their folder's ``conftest.py``.
    """
    folders = [Path(name.partition("::")[0]).parent for name in named]
    return sorted(named, key=lambda name: folders.index(Path(name.partition("::")[0]).parent))


def _refuse_part_of_the_tests(config: pytest.Config) -> None:
    """Refuse to rewrite the lists after a part of the tests, or after a run on another database than most have."""
    if not config.option.update_tiers or hasattr(config, "workerinput"):
        return
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if chosen or config.option.keyword or config.option.markexpr:
        raise pytest.UsageError("--update-tiers: must not be combined with a choice of tests")
    if "DATABASE_URL" in os.environ:
        raise pytest.UsageError("--update-tiers: must not be combined with DATABASE_URL")


@pytest.fixture
def proof_run(request: pytest.FixtureRequest) -> int:
    """Return which repetition of a proof this is."""
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With ``--proof``, repeat a test as often as its marker says, since what it shows depends on chance."""
    marker = metafunc.definition.get_closest_marker("proof")
    if marker and marker.kwargs and metafunc.config.option.proof:
        metafunc.fixturenames.append("proof_run")
        metafunc.parametrize("proof_run", range(marker.kwargs["times"]), indirect=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--fast``, leave out every test file that is not in the list."""
    if not config.option.fast or not collection_path.match("test_*.py"):
        return None
    return _name(collection_path) not in read_fast() or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Put new and long files first where workers share them.

    Those with a browser mostly compute and the others mostly wait, so that both take less time beside each other.
    """
    if config.option.no_browser:
        config.hook.pytest_deselected(items=list(filter(browses, items)))
        items[:] = [item for item in items if not browses(item)]
    if hasattr(config, "workerinput"):
        seconds = _expected()
        items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))


def pytest_collection_finish() -> None:
    """Keep the tests out of every later garbage collection: there are 10,000, and all live to the end."""
    gc.freeze()
    gc.enable()


def _expected() -> dict[str, float]:
    """Return the seconds of all files. One that is in no list may be long, and would keep a worker after the others."""
    slow, fast = read_slow(), read_fast()
    if os.environ.get(VARIABLE) == "1":
        slow |= read_slow(PROOF)
    return {file: slow.get(file, 0.0 if file in fast else math.inf) for file in test_files()}


class SharedTime:
    """
    Measures fixtures that live as long as the run, such as a database, apart from the tests.

    The first test that needs such a fixture starts it, and which test is the first changes from run to run. Therefore
    its seconds count for no file.
    """

    def __init__(self) -> None:
        self._seconds, self._depth, self._is_last = 0.0, 0, False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        if fixturedef.scope != "session" or self._depth:
            return (yield)
        self._depth, began = 1, time.perf_counter()
        try:
            return (yield)
        finally:
            self._depth = 0
            self._seconds += time.perf_counter() - began

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
        self._is_last = nextitem is None
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
        report = yield
        # Whatever was shared is stopped in the teardown of a process' last test.
        stops = call.when == "teardown" and self._is_last
        report.own_seconds = 0.0 if stops else max(0.0, report.duration - self._seconds)
        self._seconds = 0.0
        return report


class FileTimes:
    """Adds up the seconds of each file, in the process that reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seconds: Counter[str] = Counter()
        self.partly: set[str] = set()  # files of which a test was skipped or failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if isinstance(report, pytest.SubtestReport):
            return  # its seconds are among those of its test
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += getattr(report, "own_seconds", report.duration)
        if not report.passed:
            self.partly.add(file)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        option = self.config.option
        if option.fast:
            listed, present = read_fast(), test_files()
            left_out = len(present - listed)
            terminalreporter.write_line(f"{left_out} of {len(present)} test files were left out as slow: make test")
        if option.update_tiers or option.proof:
            terminalreporter.section(f"slowest {SHOWN} files")
            for file, seconds in self.seconds.most_common(SHOWN):
                terminalreporter.write_line(f"{seconds:7.1f} s  {file}")
        whole = self.config.args_source is pytest.Config.ArgsSource.TESTPATHS and not option.keyword
        if option.proof and exitstatus == 0 and whole:
            long = {file: seconds for file, seconds in self.seconds.items() if seconds >= LONG_PROOF_SECONDS}
            PROOF.write_text("".join(f"{file} {long[file]:.0f}\n" for file in sorted(long)))
        if option.update_tiers and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            measured = {file: seconds for file, seconds in self.seconds.items() if file not in self.partly}
            update(measured, present=test_files())


def update(measured: Mapping[str, float], present: Iterable[str]) -> None:
    """
    Rewrite both lists.

    Args:
        measured: Seconds by file, without files of which a test was skipped or failed: those keep their place.
        present: All test files there are; others disappear from the lists.
    """
    fast, slow = read_fast(), read_slow()
    new_fast, new_slow = set(), {}
    for file in present:
        seconds, old = measured.get(file), slow.get(file)
        if seconds is None:
            new_fast |= {file} & fast
            new_slow |= {file: old} if old else {}
        elif seconds < (LEAVES_SECONDS if file in fast else ENTERS_SECONDS):
            new_fast.add(file)
        else:
            keeps = old and old / KEPT_FACTOR < seconds < old * KEPT_FACTOR
            new_slow[file] = old if keeps else round(seconds, 1)
    FAST.write_text("".join(f"{file}\n" for file in sorted(new_fast)))
    SLOW.write_text("".join(f"{file} {new_slow[file]}\n" for file in sorted(new_slow)))


def read_fast() -> frozenset[str]:
    """Return the files that take less than about a second."""
    return frozenset(FAST.read_text().split()) if FAST.exists() else frozenset()


def read_slow(path: Path | None = None) -> dict[str, float]:
    """Return the seconds of the files that a list has, by default those that are not fast."""
    path = path or SLOW
    lines = path.read_text().splitlines() if path.exists() else []
    return {file: float(seconds) for file, _, seconds in (line.partition(" ") for line in lines)}


def test_files() -> frozenset[str]:
    """Return every test file there is."""
    return frozenset(map(_name, HERE.rglob("test_*.py")))


def _name(path: Path) -> str:
    return path.relative_to(HERE.parent).as_posix()
