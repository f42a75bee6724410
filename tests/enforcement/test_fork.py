"""What a forked child process resets, and in which order."""

import gc
import os
import subprocess
import sys

import pytest

from enforcement import fork


class Noting:
    """Notes that it was reset."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes
        fork.register(self)

    def after_fork(self):
        self.notes.append(self.name)


def names_in_a_child(notes):
    """Fork, and return what the child process has noted."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, " ".join(notes).encode() or b"none")
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read().split()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_parts_are_reset_before_what_was_registered_earlier():
    """A limiter is registered before the connections it makes: its thread must find them ready."""
    notes = []
    kept = [Noting("whole", notes), Noting("part", notes), Noting("newest", notes)]

    assert names_in_a_child(notes) == ["newest", "part", "whole"]
    assert (notes, len(kept)) == ([], 3)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_what_nobody_uses_is_not_kept():
    """Registration holds no object alive."""
    notes = []
    Noting("gone", notes)
    gc.collect()

    assert names_in_a_child(notes) == ["none"]


def test_a_child_leaves_no_socket_to_be_warned_of(server):
    """Python warns of each that is not closed, and says so on standard error."""
    code = f"""
import gc, os
from enforcement import Limit, Limiter
with Limiter({server.url!r}, timeout=5.0) as limiter:
    limiter.hit(Limit.parse("5/minute"), "fork")
    child = os.fork()
    if not child:
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code], capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 0
    assert "ResourceWarning" not in ended.stderr
