from datetime import UTC, date, datetime, timedelta

import pytest

from controlplane.traffic.fleet import outages
from controlplane.traffic.fleet.models import Instance
from controlplane.traffic.fleet.outages import Outage
from tests.factories import InstanceFactory

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DAY = date(2026, 11, 24)


def reported(seconds: int, fallback: int, started_at: datetime = NOON, **fields) -> Instance:
    """The heartbeat of an instance, so many seconds after noon."""
    decisions = {"allowed": 0, "denied": 0, "fallback": fallback}
    at = {"started_at": started_at, "seen_at": NOON + timedelta(seconds=seconds)}
    return InstanceFactory.build(**{"id": "proxy-1", **at, "decisions": decisions, **fields})


def collect(*heartbeats: Instance) -> None:
    for heartbeat in heartbeats:
        outages.note(heartbeat, Instance.objects.filter(pk=heartbeat.pk).first())
        heartbeat.save()


def test_decisions_without_the_store_are_an_outage():
    """The number grew between two heartbeats: the store was away for no longer than what lies between them."""
    collect(reported(0, 0), reported(2, 0), reported(16, 812), reported(18, 812))

    assert outages.of_day(DAY) == Outage(812, timedelta(seconds=14))


def test_a_silent_collector_is_no_outage():
    """The control plane was down and the store was not: no decision was made alone."""
    collect(reported(0, 0), reported(3600, 0))

    assert outages.of_day(DAY) == Outage(0, timedelta())


def test_outages_of_one_day_add_up():
    """The report says how long it was in all."""
    collect(reported(0, 0), reported(10, 5), reported(20, 5), reported(40, 9))

    assert outages.of_day(DAY) == Outage(9, timedelta(seconds=30))


def test_a_restarted_instance_counts_from_its_start():
    """Its counter began at 0 again, and nothing that it did before is lost."""
    collect(reported(0, 0), reported(10, 5), reported(30, 3, started_at=NOON + timedelta(seconds=20)))

    assert outages.of_day(DAY) == Outage(8, timedelta(seconds=20))


def test_the_fleet_is_away_as_long_as_its_slowest_instance():
    """Decisions of all instances are added; their times lie beside each other."""
    collect(reported(0, 0), reported(10, 5))
    collect(reported(0, 0, id="proxy-2"), reported(14, 7, id="proxy-2"))

    assert outages.of_day(DAY) == Outage(12, timedelta(seconds=14))


def test_days_are_kept_apart():
    """An outage belongs to the day on which it was over."""
    collect(reported(0, 0), reported(10, 5), reported(86_400, 5), reported(86_410, 6))

    assert outages.of_day(DAY) == Outage(5, timedelta(seconds=10))
    assert outages.of_day(DAY + timedelta(days=1)) == Outage(1, timedelta(seconds=10))


def test_days_are_forgotten():
    """A row does not grow for ever."""
    collect(reported(0, 0), *(reported(86_400 * day, day) for day in range(1, 20)))

    assert len(Instance.objects.get().decisions["fallback_by_day"]) == 8
