"""
A pytest plugin that records which lines of the product each test file runs, in its own process and in those it starts.

``pytest -p tests.lines`` writes ``var/lines``: one file per test file, with a line ``path:number`` for each line that
ran. Lines that run while a module is imported count for the test file that imported it first. A process that a test
starts with an empty environment records nothing.

``python -m tests.mutants`` and ``python -m tests.of`` read it.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "var" / "lines"
TREES = tuple(f"{ROOT}/{tree}/" for tree in ("enforcement", "controlplane"))
# Environment of the processes that tests start: the test file, and the folder of a sitecustomize that records there.
VARIABLE, SITE = "RECORDED_TEST_FILE", FOLDER / "site"
TOOL = 3  # of the six that sys.monitoring has; debuggers, coverage and profilers have the ones with names


class Recorder:
    """Tells *record* of each line of the product, once until ``begin`` is called again."""

    def __init__(self, record: Any) -> None:
        self._record, self._once = record, sys.monitoring.DISABLE
        sys.monitoring.use_tool_id(TOOL, "tests.lines")
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, self._line)
        sys.monitoring.set_events(TOOL, sys.monitoring.events.LINE)

    def begin(self) -> None:
        sys.monitoring.restart_events()

    def _line(
        self, code: CodeType, number: int, trees: tuple[str, ...] = TREES, begin: int = len(f"{ROOT}/")
    ) -> object:
        # The last lines run when this module has lost its names.
        if code.co_filename.startswith(trees):
            self._record(f"{code.co_filename[begin:]}:{number}\n")
        return self._once


def record_process() -> None:
    """Record this process, which a test started. Each line is written at once, since many processes are killed."""

    def record(line: str) -> None:
        # Opened for each line: a process that becomes another one closes what it has, and forks have other test files.
        if file := os.environ.get(VARIABLE):
            descriptor = os.open(_path(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line.encode())
            os.close(descriptor)

    Recorder(record)


def _path(test_file: str) -> Path:
    return FOLDER / test_file.replace("/", "+")


class Plugin:
    """Records the process that runs the tests."""

    def __init__(self) -> None:
        self._file, self._lines = "", set[str]()
        self._recorder = Recorder(lambda line: self._lines.add(line))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        file = nodeid.partition("::")[0]
        if file != self._file:
            self._keep()
            self._file = os.environ[VARIABLE] = file
            self._recorder.begin()

    def pytest_sessionfinish(self) -> None:
        self._keep()

    def _keep(self) -> None:
        if self._file:
            with _path(self._file).open("a") as out:
                out.writelines(sorted(self._lines))
        self._lines.clear()


def pytest_configure(config: Any) -> None:
    SITE.mkdir(parents=True, exist_ok=True)
    program = f"import os\nif {VARIABLE!r} in os.environ:\n    import sys\n    sys.path.append({str(ROOT)!r})\n"
    program += "    import tests.lines\n    tests.lines.record_process()\n    sys.path.pop()\n"
    (SITE / "sitecustomize.py").write_text(program)
    if config.option.numprocesses is None or hasattr(config, "workerinput"):
        config.pluginmanager.register(Plugin(), "lines-plugin")


def recorded() -> dict[str, dict[int, set[str]]]:
    """Return the test files that run each line of each product file, as far as they were recorded."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in FOLDER.glob("*.py"):
        for line in set(record.read_text().split()):
            path, _, number = line.rpartition(":")
            found[path][int(number)].add(record.name.replace("+", "/"))
    return found
