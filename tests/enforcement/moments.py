"""How much a store has to do in some moments, whose length depends on how much the machine does."""

import time
from typing import Any

from tests.enforcement.world import eventually

OURS = ("cmdstat_info", "cmdstat_config|resetstat")


def commands(client: Any, *, again: bool = True) -> int:
    """Return how many commands a store has executed since it was asked last, but for asking. Count anew *again*."""
    stats = client.info("commandstats")
    if again:
        client.config_resetstat()
    return sum(stat["calls"] for name, stat in stats.items() if name not in OURS)


def commands_in(client: Any, at_least: int, seconds: float = 0.5) -> tuple[int, float]:
    """Wait so many seconds, and for so many commands; return how many there were, and how long it took."""
    commands(client)
    began = time.monotonic()
    time.sleep(seconds)
    assert eventually(lambda: commands(client, again=False) >= at_least, 60.0, 0.05)
    return commands(client), time.monotonic() - began
