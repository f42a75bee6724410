"""Where the output of a command goes: a pipe that closes, a full disk, no output at all, and other encodings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT

SLUICEGATE = [sys.executable, "-m", "enforcement"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def in_shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Bash, in which ``$S`` is the command."""
    environment = {**ENVIRONMENT, "S": " ".join(SLUICEGATE), **variables}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["schema", "--help", "validate --help", "validate none none 2>&1"])
def test_a_cut_output_has_an_exit_status_of_its_own(command: str) -> None:
    """Which is not that of an error in a file. The reader has ended before the command writes."""
    done = in_shell(f"($S {command}; echo $? >&2) | :")

    assert done.stderr == "141\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("command", ["schema", "--help", "--version", "validate --json /dev/null"])
def test_a_full_disk_is_one_sentence(command: str) -> None:
    """And no traceback. What was written before must not look whole."""
    done = in_shell(f"$S {command} > /dev/full")

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_changes_no_exit_status(closed: str) -> None:
    """As of a program that was started by another one."""
    assert in_shell(f"$S validate /dev/null {closed}").returncode == 1
    assert in_shell(f"$S schema {closed}").returncode == 0
