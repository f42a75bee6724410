"""Stores that fail, and processes that try them again soon."""

import pytest

from enforcement.store import absence


@pytest.fixture
def own_pace():
    """Leave the pauses between two probes as long as they are."""


@pytest.fixture(autouse=True)
def quick_probes(request, monkeypatch):
    """Let this process probe a store that is away some times a second: that it pauses longer has tests of its own."""
    if "own_pace" not in request.fixturenames:
        monkeypatch.setattr(absence, "LONGEST_PROBE_SECONDS", 0.2)
        monkeypatch.setattr(absence, "REFUSED_PROBE_SECONDS", 0.3)
