"""What a test needs from the machine, asked for in one way."""

from __future__ import annotations

import os
import shutil

import pytest


def require(component: str | None, how: str) -> str:
    """
    Return *component*, the path or address of a part that a test cannot do without, when there is one.

    Args:
        component: What was found; None or "" when nothing was.
        how: A sentence that says what is missing and how to get it.

    Without the part the test is skipped, with *how* as the reason. Where ``CI=true`` says that the machine was
    prepared, a missing part fails the test instead: a skip would pass for a proof.
    """
    if component:
        return component
    if os.environ.get("CI") == "true":
        pytest.fail(how, pytrace=False)
    pytest.skip(how)


def chromium() -> str:
    """Return the path of a Chromium for browser tests. One without windows takes half of the processor's time."""
    return require(
        next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser"))), None),
        "Chromium is missing: install it with 'apt-get install chromium-headless-shell'.",
    )
