"""The lists of fast and slow test files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import tiers
from tests.repository import ROOT


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Give lists of one fast file and one slow file."""
    fast, slow = tmp_path / "fast.txt", tmp_path / "slow.txt"
    fast.write_text("tests/test_f.py\n")
    slow.write_text("tests/test_s.py 4.0\n")
    monkeypatch.setattr(tiers, "FAST", fast)
    monkeypatch.setattr(tiers, "SLOW", slow)
    return fast, slow


BOTH = {"tests/test_f.py", "tests/test_s.py"}


@pytest.mark.parametrize(
    ("measured", "fast", "slow"),
    [
        ({"tests/test_f.py": 1.4, "tests/test_s.py": 1.1}, "tests/test_f.py\n", "tests/test_s.py 1.1\n"),
        ({"tests/test_f.py": 1.6, "tests/test_s.py": 0.9}, "tests/test_s.py\n", "tests/test_f.py 1.6\n"),
        ({"tests/test_f.py": 0.1, "tests/test_s.py": 5.9}, "tests/test_f.py\n", "tests/test_s.py 4.0\n"),
        ({"tests/test_f.py": 0.1, "tests/test_s.py": 6.11}, "tests/test_f.py\n", "tests/test_s.py 6.1\n"),
        ({}, "tests/test_f.py\n", "tests/test_s.py 4.0\n"),
    ],
    ids=["between the bounds", "beyond the bounds", "about as slow", "much slower", "skipped"],
)
def test_a_file_changes_its_list_only_when_it_is_clearly_slower_or_faster(lists, measured, fast, slow) -> None:
    """A file that takes about a second does not change the lists at every run."""
    tiers.update(measured, BOTH)

    assert [path.read_text() for path in lists] == [fast, slow]


def test_a_new_file_is_listed_and_a_removed_one_disappears(lists) -> None:
    """The lists name the files that there are, in order."""
    tiers.update(
        {"tests/b/test_b.py": 0.2, "tests/test_a.py": 0.2, "tests/test_c.py": 1.2},
        {"tests/b/test_b.py", "tests/test_a.py", "tests/test_c.py"},
    )

    assert [path.read_text() for path in lists] == ["tests/b/test_b.py\ntests/test_a.py\n", "tests/test_c.py 1.2\n"]


def test_a_file_whose_tests_were_skipped_and_that_is_in_no_list_stays_out(lists) -> None:
    """Without its parts nobody knows how long it takes."""
    tiers.update({}, {*BOTH, "tests/test_new.py"})

    assert [path.read_text() for path in lists] == ["tests/test_f.py\n", "tests/test_s.py 4.0\n"]


def test_new_files_come_first_then_long_ones(lists, monkeypatch) -> None:
    """A file of unknown length that came last would keep one worker while the others have nothing left."""
    names = ["test_f.py", "test_s.py", "test_new.py"]
    monkeypatch.setattr(tiers, "test_files", lambda: {f"tests/{name}" for name in names})
    items = [SimpleNamespace(nodeid=f"tests/{name}::test_it") for name in names]

    config = SimpleNamespace(workerinput={}, option=SimpleNamespace(no_browser=False))
    tiers.pytest_collection_modifyitems(config, items)

    assert [item.nodeid[6:] for item in items] == [f"{name}.py::test_it" for name in ("test_new", "test_s", "test_f")]


def test_the_files_whose_proofs_are_long_come_first_in_proofs(lists, monkeypatch, tmp_path) -> None:
    """A fast file may have a proof of minutes."""
    proof = tmp_path / "proof.txt"
    proof.write_text("tests/test_f.py 300\n")
    monkeypatch.setattr(tiers, "PROOF", proof)
    monkeypatch.setattr(tiers, "test_files", lambda: set(BOTH))

    monkeypatch.delenv(tiers.VARIABLE, raising=False)
    assert tiers._expected() == {"tests/test_f.py": 0.0, "tests/test_s.py": 4.0}
    monkeypatch.setenv(tiers.VARIABLE, "1")
    assert tiers._expected() == {"tests/test_f.py": 300.0, "tests/test_s.py": 4.0}


def test_whatever_has_full_numbers_is_a_proof() -> None:
    """Numbers that no marker names would never be run in full."""
    scaled = [path for path in tiers.HERE.rglob("test_*.py") if "import scale\n" in path.read_text()]

    assert scaled
    assert [path.name for path in scaled if "pytest.mark.proof" not in path.read_text()] == []


def test_files_may_be_named_in_any_order(tmp_path: Path) -> None:
    """A file of a folder above, named between two files of a folder, does not part the second from its fixtures."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef given():\n    return 1\n")
    for name in "below/test_a.py", "below/test_b.py":
        (tmp_path / name).write_text("def test(given):\n    assert given == 1\n")
    (tmp_path / "test_above.py").write_text("def test():\n    pass\n")
    (tmp_path / "conftest.py").write_text(
        "from tests.tiers import by_folder\n"
        "def pytest_configure(config):\n"
        "    config.args[:] = by_folder(config.args)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", "."]
    files = ["below/test_a.py", "test_above.py", "below/test_b.py"]
    environ = {**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}

    done = subprocess.run([*command, *files], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    assert "3 passed" in done.stdout, done.stdout
