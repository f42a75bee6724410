from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from controlplane.traffic.stream.batches import SettledRow
from controlplane.traffic.usage import months
from enforcement.metering.tally import MeteredCounts

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.fixture
def use(db: None) -> Callable[..., None]:
    """``use(project, at, token="tok_1", allowed=3)``: usage that arrives on 26 November, or ``now``."""

    def add(
        project: Any, at: datetime, *, now: datetime = NOW, token: str = "", limit: str = "", **counts: int
    ) -> None:
        policy, _, name = limit.partition("/")
        names = (project.pk, token, policy, name, "requests")
        numbers = tuple(counts.get(count, 0) for count in ("allowed", "denied", "would_deny", "cost"))
        months.add({at: {names: numbers}}, now)

    return add


@pytest.fixture
def spend(db: None) -> Callable[..., None]:
    """``spend(project, at, model="gpt-x", micros=5)``: metered requests that arrive at noon of 26 November."""

    def add(
        project: Any, at: datetime, *, token: str = "", model: str = "gpt-x", micros: int = 0, output: int = 0
    ) -> None:
        counts = MeteredCounts(requests=1, input=10, output=output, micros=micros, estimated_input=10)
        months.add_metered([SettledRow(at, (project.pk, token, model, "exact"), False, 1, counts)], NOW)

    return add
