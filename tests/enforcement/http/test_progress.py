"""How far the body of a response has come."""

from __future__ import annotations

from enforcement.http.progress import Progress


def test_announced_body_is_complete_with_its_last_byte() -> None:
    """A client that knows the length sends its next request before the server has cleared up."""
    progress = Progress()
    progress.begin(200, "10")

    assert [progress.ends_with(4), progress.ends_with(0), progress.ends_with(6)] == [False, False, True]


def test_body_of_unknown_length_is_never_complete_by_itself() -> None:
    """Only the end of the message ends it."""
    progress = Progress()
    progress.begin(200, None)

    assert not progress.ends_with(1_000_000)
