"""The small objects that the background thread is composed of."""

from __future__ import annotations

import logging

from enforcement.engine.duties import OnceLogger


def test_a_warning_is_logged_once_until_it_is_forgotten(caplog) -> None:
    """A problem that is there at every check makes one line, and another one when it comes back."""
    caplog.set_level(logging.WARNING, logger="sluicegate")
    once = OnceLogger()
    for text in ("a", "b", "a"):
        once.warn(text)

    once.forget_except(["b"])
    once.warn("a")
    once.warn("b")

    assert caplog.messages == ["a", "b", "a"]
