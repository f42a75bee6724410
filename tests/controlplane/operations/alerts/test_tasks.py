"""An outage of the store, told of by a running beat. A worker gets no task then, because the store is its broker."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from enforcement.embedded import ValkeyServer
from tests.controlplane.operations.webhooks.conftest import LOOPBACK
from tests.controlplane.stack.parts import Parts
from tests.controlplane.stack.running import eventually
from tests.repository import ROOT
from tests.scale import scale

pytestmark = pytest.mark.proof

OUTAGES = scale(1, 4)
LOOKS = 2
RULE = """
from controlplane.operations.alerts.models import AlertRule
from controlplane.operations.webhooks.models import Destination
rule = AlertRule.objects.create(name="outages", kind="store_outage", cool_down_seconds=0)
rule.destinations.add(Destination.objects.create(name="hook", url="{url}"))
"""


@pytest.fixture
def store() -> Iterator[ValkeyServer]:
    with ValkeyServer(persistent=False) as server:
        yield server


def looks_after(database: Path, last: str) -> str:
    """Return the time of the latest look after *last*, or an empty string if there was none."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT max(looked_at) FROM alerts_steadiness").fetchone()[0] or ""
    return found if found > last else ""


def looked(database: Path, times: int) -> bool:
    """Wait for so many further looks."""
    last = looks_after(database, "")
    for _ in range(times):
        if not eventually(lambda last=last: bool(looks_after(database, last))):
            return False
        last = looks_after(database, last)
    return True


def test_an_outage_is_told_of_by_beat_and_once_although_beat_is_killed(store, receiver, tmp_path) -> None:
    """Its begin and its end arrive, each as one message. Beat starts again while the store is away."""
    database = tmp_path / "controlplane.sqlite3"
    with Parts(tmp_path, f"sqlite:///{database}", store.url) as parts:
        parts.environment["SLUICEGATE_ALERT_NETWORKS"] = ",".join(LOOPBACK)
        parts.manage(ROOT, "migrate", "--no-input", "-v", "0")
        parts.manage(ROOT, "shell", "-v", "0", "-c", RULE.format(url=receiver.url))
        parts.worker("worker", ROOT)
        assert looked(database, LOOKS)
        assert receiver.requests == []
        for number in range(1, OUTAGES + 1):
            store.kill()
            assert eventually(lambda number=number: len(receiver.requests) == 2 * number - 1)
            parts.kill("worker-beat")
            parts.beat("worker-beat", ROOT)
            assert looked(database, LOOKS)
            store.start()
            assert eventually(lambda number=number: len(receiver.requests) >= 2 * number)
            assert looked(database, LOOKS)

    told = Counter(json.loads(request.body)["type"] for request in receiver.requests)
    assert told == {f"alert.store_outage.{state}": OUTAGES for state in ("raised", "resolved")}
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 2 * OUTAGES
