"""The demo, end to end: everything it starts, every proof it gives, and that it leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.demo.environment import claim
from controlplane.demo.reporter import Reporter
from controlplane.stack.locks import StackError
from tests.controlplane.forks import start_manage
from tests.enforcement.world import eventually
from tests.repository import ROOT
from tests.scale import scale


def command(directory: Path) -> list[str]:
    return ["demo", "--directory", str(directory)]


def environment(**more: str) -> dict[str, str]:
    """As a newcomer has it: nothing set, but for what finds programs."""
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | more


def running(directory: Path) -> list[str]:
    """Name the processes of a demo that still run: each holds its lock as long as it lives."""
    return [lock.stem for lock in (directory / "run").glob("*.lock") if _is_held(lock)]


def _is_held(path: Path) -> bool:
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def lines_of(terminal: int) -> Iterator[str]:
    """Yield what appears on a terminal, until nobody writes to it any more."""
    with open(terminal, encoding="utf-8", errors="replace") as reading:
        try:
            yield from reading
        except OSError:  # how Linux says that the other end is closed
            return


@pytest.mark.proof(times=3)
def test_demo_proves_all_eight_points_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Without a terminal it stops by itself, with 0 because every check passed."""
    directory = tmp_path / "demo"

    with (tmp_path / "output").open("wb") as output:
        status = start_manage(ROOT, command(directory), environment(), output.fileno()).wait(180)

    said = (tmp_path / "output").read_text()
    assert status == 0, said
    assert [line[0] for line in said.splitlines() if line[:1].isdigit()] == list("12345678")
    assert "✗" not in said
    for proof in ("100 pass", "200 get 429", "50 more pass", "401 from all three", "150 of 150 in total", "caught up"):
        assert proof in said
    for proof in ("and the budget 10,000", "budget has the same", "3 of 3 proxies deny it with 429"):
        assert proof in said
    assert "/admin/   user admin, password" in said
    assert running(directory) == []
    assert [path for path in (directory, *directory.rglob("*")) if path.stat().st_mode & 0o077] == []


@pytest.mark.proof(times=3)
@pytest.mark.parametrize("until", scale(["Starting Valkey"], ["Starting Valkey", "1  A project"]))
def test_demo_on_a_terminal_is_stopped_by_a_signal_at_any_time(tmp_path: Path, until: str) -> None:
    """Whatever runs by then, the store at least, is stopped; the end before the end is no success."""
    directory, (ours, theirs) = tmp_path / "demo", pty.openpty()
    demo = start_manage(ROOT, command(directory), environment(), theirs, given=theirs)
    os.close(theirs)

    lines = lines_of(ours)
    assert any(until in line for line in lines)
    assert eventually(lambda: "valkey" in running(directory), 60)
    demo.send_signal(signal.SIGINT)
    rest = "".join(lines)

    assert demo.wait(60) == 130
    assert "Stopping everything." in rest
    assert running(directory) == []


def test_directory_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    """The demo removes what a demo made, and nothing else."""
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(StackError, match="no demo made"):
        claim(tmp_path)

    assert (tmp_path / "thesis.txt").exists()


def test_one_check_that_fails_fails_the_whole() -> None:
    """The summary repeats the failed checks."""
    said: list[str] = []
    reporter = Reporter(said.append)
    reporter.check(True, "holds")
    reporter.check(False, "does not hold")

    assert reporter.summarize() is False
    assert said[-2:] == ["1 of 2 checks failed:", "   ✗ does not hold"]


def test_marks_are_spelled_in_letters_where_the_terminal_has_no_others() -> None:
    """An ASCII terminal shows the demo too."""
    said: list[str] = []
    Reporter(said.append, "ascii").check(True, "holds")

    assert said == ["   ok holds"]
