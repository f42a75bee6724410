"""How many instances have a revision, and after how long."""

from datetime import UTC, datetime, timedelta

import pytest

from controlplane.releases.publishing import acknowledgements
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.fleet.models import Instance

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR_AGO = NOON - timedelta(hours=1)


def instance(number: int, after_ms: int, **fields):
    """An instance that got a revision so many milliseconds after noon, and runs."""
    got = NOON + timedelta(milliseconds=after_ms)
    times = {"started_at": HOUR_AGO, "seen_at": NOON + timedelta(seconds=5), "revision_at": got}
    pk = f"proxy-{Instance.objects.count()}"
    return Instance.objects.create(pk=pk, revision=number, state="ok", **{**times, **fields})


def numbers(seconds: float = 6.0) -> tuple:
    """The numbers of revision 7, so many seconds after its publication at noon."""
    Revision.objects.get_or_create(number=7, defaults={"at": NOON, "published_at": NOON})
    acknowledgements.note(NOON + timedelta(seconds=seconds))
    revision = Revision.objects.get(number=7)
    return revision.live_on, revision.instances, revision.lag_ms, revision.is_counted


def test_the_last_instance_says_how_long_it_took():
    """A late look at the fleet does not make it longer."""
    instance(7, 200)
    instance(7, 410)

    assert numbers() == (2, 2, 410, True)


def test_one_that_does_not_have_it_is_waited_for():
    """The numbers are not final until it has it."""
    instance(7, 200)
    late = instance(6, -60_000)
    assert numbers() == (1, 2, None, False)

    late.revision, late.revision_at = 7, NOON + timedelta(seconds=8)
    late.seen_at = NOON + timedelta(seconds=9)
    late.save()

    assert numbers(9) == (2, 2, 8_000, True)


def test_nobody_waits_for_ever():
    """What it was by then stays."""
    instance(6, -60_000, seen_at=NOON + timedelta(minutes=10))

    assert numbers(601) == (0, 1, None, True)


def test_only_instances_that_ran_then_count():
    """Whoever started later has loaded it at its start."""
    instance(7, 200)
    instance(7, 4_000, started_at=NOON + timedelta(seconds=3))

    assert numbers() == (1, 1, 200, True)


def test_a_later_revision_contains_it():
    """An instance that was never seen with it had it by then at the latest."""
    instance(8, 900)

    assert numbers() == (1, 1, 900, True)


def test_a_clock_that_is_ahead_gives_no_negative_time():
    """The store's clock is behind that of the control plane."""
    instance(7, -30)

    assert numbers() == (1, 1, 0, True)


def test_no_instance_is_no_full_number():
    """0 of 0 is not everywhere."""
    assert numbers() == (0, 0, None, False)


def test_an_instance_of_an_earlier_release_counts_by_its_heartbeat():
    """Which is later than the truth, and never earlier."""
    instance(7, 0, revision_at=None)

    assert numbers() == (1, 1, 5_000, True)
