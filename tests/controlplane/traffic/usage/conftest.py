import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.utils import timezone

from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain import live_counters
from controlplane.traffic.usage import checkpoints

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
NOON_MINUTE = 29_925_360  # minutes since the epoch
USAGE = "sg:{usage}:stream"


def row(minute: int = NOON_MINUTE, **changed) -> list:
    """One row of a batch: one permitted request of tok_1, unless fields are changed."""
    fields = {"project": "proj_1", "token": "tok_1", "policy": "", "limit": "", "unit": "requests"}
    fields |= {"allowed": 1, "denied": 0, "would_deny": 0, "cost": 1}
    return [minute, *(fields | changed).values()]


def checkpoint() -> int:
    return checkpoints.checkpoint(timezone.now())


def remaining(holder: Token | Project) -> list[int | None]:
    """Return what is left of each counter of a token or project."""
    return [counter.remaining for counter in live_counters.counters_of(holder)]


@pytest.fixture
def report_usage(client_of_store) -> Callable[..., str]:
    """Append a batch as an enforcer does: ``report_usage("proxy-1-1", row(), row(...))``."""

    def send(batch_id: str, *rows: list) -> str:
        return client_of_store.xadd(USAGE, {"id": batch_id, "instance": "proxy-1", "rows": json.dumps(rows)})

    return send
