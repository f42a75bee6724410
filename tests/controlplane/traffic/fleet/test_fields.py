"""The fields of requests that bounds refuse are known of processes that have ended, too."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from controlplane.traffic.fleet import heartbeats
from controlplane.traffic.fleet.models import FieldCount
from enforcement.doctor.fleet import instances
from enforcement.metering.refusals import FieldRefusals
from enforcement.model.keys import Keys

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DAY = int(NOW.timestamp()) // 86_400


def beat(client, counted: FieldRefusals, name: str, now: datetime, started: int = 1) -> None:
    """Write the heartbeat of a process that has counted refusals."""
    at_us = int(now.timestamp()) * 1_000_000
    beat = {
        "id": name,
        "revision": 1,
        "state": "ok",
        "seen_at_us": at_us,
        "started_at_us": at_us - 3_600_000_000 + started,
        "fields": counted.recent(at_us),
        "field_days": counted.by_day(at_us),
    }
    client.set(Keys().instance(name), json.dumps(beat), px=60_000)
    client.zadd(Keys().instances, {name: at_us})


def counts(*fields: str, at: datetime = NOW) -> FieldRefusals:
    found = FieldRefusals()
    for field in fields:
        found.refused(field, int(at.timestamp()) * 1_000_000)
    return found


def told(client) -> list[str]:
    """What the doctor says of refused fields."""
    return [one.value.partition(": ")[2] for one in instances(client, Keys()) if one.name == "fields"]


def test_counts_of_a_process_outlive_it_for_seven_days(client_of_store, store):
    """Also if the next one has its id, and none is counted twice while it lives."""
    beat(client_of_store, counts("turbo", "turbo"), "proxy", NOW)
    for _ in range(2):
        heartbeats.collect(NOW, client_of_store)
    assert told(client_of_store) == ["turbo (2)"]

    beat(client_of_store, counts("turbo", "speed=fast"), "proxy", NOW, started=2)
    heartbeats.collect(NOW, client_of_store)
    assert told(client_of_store) == ["turbo (3), speed=fast (1)"]

    client_of_store.delete(Keys().instance("proxy"))
    heartbeats.collect(NOW + timedelta(days=6), client_of_store)
    assert told(client_of_store) == ["turbo (3), speed=fast (1)"]
    client_of_store.delete(Keys().last_fields)
    heartbeats.collect(NOW + timedelta(days=7), client_of_store)
    assert (told(client_of_store), FieldCount.objects.count()) == ([], 0)


def test_the_day_before_is_told_once_more(client_of_store, store):
    """So that nothing of the last seconds before midnight is missing."""
    counted = counts("turbo", at=NOW - timedelta(days=1))
    counted.refused("speed=fast", int(NOW.timestamp()) * 1_000_000)
    beat(client_of_store, counted, "proxy", NOW)
    heartbeats.collect(NOW, client_of_store)

    assert list(FieldCount.objects.order_by("day").values_list("day", "counts")) == [
        (DAY - 1, {"refused": [["turbo", 1]]}),
        (DAY, {"refused": [["speed=fast", 1]]}),
    ]


@pytest.mark.parametrize(
    "days", [7, {"x": {}}, {"1": 5}, {str(DAY): {"refused": [["a", -1], ["b"], 3, ["c", "1"]]}}, {"9" * 30: {}}]
)
def test_what_makes_no_sense_is_left_out(client_of_store, store, days):
    """Anybody may have written a heartbeat."""
    at_us = int(NOW.timestamp()) * 1_000_000
    text = json.dumps({"id": "p", "revision": 1, "state": "ok", "seen_at_us": at_us, "field_days": days})
    client_of_store.set(Keys().instance("p"), text, px=60_000)
    client_of_store.zadd(Keys().instances, {"p": at_us})

    assert heartbeats.collect(NOW, client_of_store) == 1
    assert not FieldCount.objects.exclude(counts={}).exists()
