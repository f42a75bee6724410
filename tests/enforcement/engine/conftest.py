"""Background threads whose duties are due soon."""

import pytest

from enforcement.engine import agent


@pytest.fixture
def quick_duties(monkeypatch):
    """Let the background do some times a second what it does every few seconds, where that is not what is tested."""
    for name in ("CHECK_SECONDS", "HEARTBEAT_SECONDS"):
        monkeypatch.setattr(agent, name, 0.3)
