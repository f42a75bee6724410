"""Mutants are small changes of the product, have lasting names, and are killed by tests that fail because of them."""

from __future__ import annotations

import ast
import queue
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import Copies, Mutant, Trial, drawn, to_ask

SOURCE = b'''\
def price(count: int, each: int = 3) -> int:
    """Return what so many cost."""
    if count < 0 or not each:
        raise ValueError(f"count: must be at least {0}")
    note(count)
    return count * each if count > 1 else each
'''
MUTANTS = {
    "joins": "(count < 0 and (not each))",
    "compares": "(count <= 0)",
    "constant": "1",
    "negates": "(each)",
    "leaves out": "pass",
    "returns": "return None",
    "chooses": "(each if count > 1 else count * each)",
    "computes": "(count // each)",
}


@pytest.mark.parametrize("kind", MUTANTS)
def test_a_mutant_changes_one_thing(kind: str) -> None:
    """Comparisons, sums, constants, conditions, results and calls are changed. Texts, types and defaults are not."""
    found = next(mutant for mutant in mutants.mutants("a.py", SOURCE) if f" {kind} " in mutant.name)

    assert found.text == MUTANTS[kind]
    assert found.applied(SOURCE).count(found.text.encode()) > SOURCE.count(found.text.encode())


def test_a_name_lasts_while_its_function_does() -> None:
    """A table of an older state tells of the same mutants, though lines have moved."""
    moved = b"import os\n\n\nclass Other:\n    pass\n\n\n" + SOURCE

    names = [mutant.name for mutant in mutants.mutants("a.py", moved)]

    assert names == [mutant.name for mutant in mutants.mutants("a.py", SOURCE)]
    assert len(set(names)) == len(names)


def test_the_drawn_mutants_are_python_and_the_same_again() -> None:
    """A mutant that does not compile would be killed by every test."""
    found = drawn(seed=7, count=40)

    assert found == drawn(seed=7, count=40)
    for mutant in found:
        ast.parse(mutant.applied((mutants.ROOT / mutant.path).read_bytes()))


LINES = {
    "room/a.py": {3: {"tests/x/test_b.py", "tests/room/test_a.py", "tests/room/test_c.py"}, 9: {"tests/test_d.py"}}
}


@pytest.mark.parametrize(
    ("is_imported", "expected"),
    [
        (False, ["tests/room/test_a.py", "tests/room/test_c.py", "tests/x/test_b.py"]),
        (True, ["tests/room/test_a.py", "tests/room/test_c.py", "tests/test_d.py", "tests/x/test_b.py"]),
    ],
)
def test_those_that_run_the_line_are_asked_the_nearest_first(is_imported: bool, expected: list[str]) -> None:
    """What runs on import is in nobody's lines, so whoever runs anything of the module is asked."""
    mutant = Mutant("room/a.py", "m", frozenset({3}), is_imported, 0, 0, "")

    found = to_ask(mutant, LINES, 60)

    assert found[:2] == expected[:2]
    assert sorted(found) == expected


class OneCopy(Copies):
    """One folder with a product of one file, and its tests."""

    def __init__(self, folder: Path, tests: str) -> None:
        (folder / "tests").mkdir()
        (folder / "a.py").write_bytes(SOURCE.replace(b"    note(count)\n", b""))
        (folder / "tests" / "test_a.py").write_text(f"from a import price\n{tests}")
        (folder / "pytest.ini").write_text("[pytest]\n")
        self.free = queue.Queue()
        self.free.put(folder)


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ("def test_many(): assert price(2) == 6", ("killed", "tests/test_a.py::test_many")),
        ("def test_one(): assert price(1) == 3", ("survived", "")),
        ("def test_wrong(): assert price(1) == 7", ("survived", "")),
    ],
)
def test_a_test_kills_that_fails_only_with_the_mutant(
    tests: str, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that fails anyway says nothing about the mutant, and the copy is whole again in the end."""
    copies = OneCopy(tmp_path, tests)
    source = (tmp_path / "a.py").read_bytes()
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    mutant = next(mutant for mutant in mutants.mutants("a.py", source) if "computes" in mutant.name)

    found = Trial(copies, {"a.py": {line: {"tests/test_a.py"} for line in range(9)}}, seconds=60).of(mutant)

    assert found == expected
    assert (tmp_path / "a.py").read_bytes() == source


def test_what_no_test_runs_is_said(tmp_path: Path) -> None:
    """A line that no test runs needs no trial."""
    copies = OneCopy(tmp_path, "")
    mutant = next(mutants.mutants("a.py", (tmp_path / "a.py").read_bytes()))

    assert Trial(copies, {}, seconds=60).of(mutant) == ("not run", "")
