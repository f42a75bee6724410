"""What late answers say of calls that were given up, whatever comes in their place."""

import gc
import socket
import struct

import hiredis
import pytest

from enforcement.failover.in_doubt import charged
from enforcement.store.late_replies import GARBLED, LOST, AioLateReply


@pytest.fixture
def ends():
    """Give both ends of a connection: the store's, and what a process waits on."""
    theirs, ours = socket.socketpair()
    late = AioLateReply(ours, hiredis.Reader())
    yield theirs, late
    late.close()
    theirs.close()


def text(*numbers):
    """Return a reply as the functions give it."""
    packed = struct.pack(f">{len(numbers)}q", *numbers)
    return b"$%d\r\n%b\r\n" % (len(packed), packed)


@pytest.mark.parametrize(
    ("sent", "was_charged"),
    [
        (text(1, 7), True),
        (text(0, 7), False),
        (text(-1, 7), False),
        (b"*2\r\n*2\r\n:1\r\n:7\r\n:0\r\n", True),
        (b"*2\r\n*2\r\n:0\r\n:7\r\n:0\r\n", False),
        (b"-OOM command not allowed\r\n", False),
        (b"?garbage\r\n", True),
        (b"+OK\r\n", True),
    ],
    ids=["passed", "denied", "outside", "enrolled", "denied newcomer", "refused", "spoilt", "another's"],
)
def test_an_answer_says_whether_the_request_was_charged(ends, sent, was_charged):
    """A denial and a refusal charged nothing; what was harmed on its way had been executed."""
    theirs, late = ends
    theirs.sendall(sent)

    assert charged(late.look()) is was_charged
    assert late.look() is late.look()


def test_an_answer_may_come_in_pieces(ends):
    """Until all of it is there, nothing is known."""
    theirs, late = ends
    theirs.sendall(text(1, 7)[:9])
    assert late.look() is None
    theirs.sendall(text(1, 7)[9:])
    assert charged(late.look())


def test_a_connection_that_ends_says_that_nothing_was_charged(ends):
    """The store died with the call."""
    theirs, late = ends
    theirs.close()

    assert late.look() is LOST
    assert not charged(LOST)


def test_garbage_harms_no_other_doubt(ends):
    """It is told as what it is, and not raised in the thread that looks."""
    theirs, late = ends
    theirs.sendall(b"?" * 100)

    assert late.look() is GARBLED


def test_a_connection_is_closed_once_however_nobody_waits_for_it(ends):
    """Closed, let go of, or collected in a cycle with whatever raised it; and nobody else's of the same number is."""
    theirs, late = ends
    late.close()
    late.close()
    assert (theirs.recv(1), late.look()) == (b"", None)

    another, ours = socket.socketpair()
    circle = [AioLateReply(ours, hiredis.Reader()), ours]
    circle.append(circle)
    del circle, ours
    gc.collect()
    assert another.recv(1) == b""
    another.close()
