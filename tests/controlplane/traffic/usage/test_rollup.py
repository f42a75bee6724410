from datetime import UTC, datetime, timedelta
from importlib import import_module
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.db import connection
from django.db.models import Sum
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from controlplane.core.periods import start_of
from controlplane.traffic.stream.batches import COUNTS, Row
from controlplane.traffic.usage import rollup, tasks
from controlplane.traffic.usage.models import DecisionCount, UsageBatch, UsageRow
from tests.controlplane.traffic.usage.conftest import NOON
from tests.factories import UsageRowFactory

NOTHING = dict.fromkeys(("minute", "hour", "day"), timedelta())
LONGEST = {**NOTHING, "minute": timedelta(days=1), "hour": timedelta(days=31)}
WITHIN_A_PARTITION = LONGEST if connection.vendor == "postgresql" else NOTHING
NAMES = ("proj_1", "tok_1", "", "", "requests")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("period", "start"), [("minute", "2026-11-24 13:47"), ("hour", "2026-11-24 13:00"), ("day", "2026-11-24 00:00")]
)
def test_periods_begin_where_clocks_in_utc_do(period, start):
    """The buckets of a period do not depend on where the server stands."""
    assert start_of(period, at("2026-11-24 13:47:59.999999")) == at(start)


@pytest.mark.django_db
def test_a_minute_is_counted_in_its_hour_and_day():
    """Hours and days are there at once, not after the next roll-up."""
    rollup.add(
        [Row(at("2026-11-24 11:59"), NAMES, (1, 2, 3, 4)), Row(at("2026-11-24 11:01"), NAMES, (1, 0, 0, 0))], NOON
    )

    hour, day = (UsageRow.objects.get(period=period) for period in ("hour", "day"))
    assert (hour.at, [getattr(hour, name) for name in COUNTS]) == (at("2026-11-24 11:00"), [2, 2, 3, 4])
    assert (day.at, [getattr(day, name) for name in COUNTS]) == (at("2026-11-24 00:00"), [2, 2, 3, 4])


@pytest.mark.django_db
@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 1), (4, 0), (63, 0), (64, 4), (5 * 10**7, 0), (0, 5 * 10**7)])
def test_the_activity_of_a_minute_is_that_of_its_sums(counts):
    """It is computed here for a new row, and by the database for one that gets more. Other rows have none."""
    limited = ("proj_1", "tok_1", "pol_1", "per-day", "requests")
    rows = [Row(at("2026-11-24 11:59"), names, (*counts, 0, 1)) for names in (NAMES, limited)]

    rollup.add(rows, NOON)
    first = UsageRow.objects.get(period="minute", policy_id="").activity
    rollup.add(rows, NOON)
    twice = UsageRow.objects.get(period="minute", policy_id="").activity

    allowed, denied = counts
    assert first == UsageRow.activity_of(allowed, denied)
    assert twice == UsageRow.activity_of(2 * allowed, 2 * denied)
    assert UsageRow.objects.exclude(activity=0).count() == (1 if any(counts) else 0)


def test_denials_are_above_all_requests():
    """A step has up to three times as many more. The last one has no end."""
    rising = [(0, 0), (1, 0), (4, 0), (16, 0), (4**11, 0), (0, 1), (9, 4), (0, 4**11)]

    activities = [UsageRow.activity_of(*counts) for counts in rising]

    assert activities == sorted(set(activities))
    assert UsageRow.activity_of(15, 0) == UsageRow.activity_of(4, 0)
    assert UsageRow.activity_of(4**15, 0) == UsageRow.activity_of(4**11, 0)


class RollUp(TestCase):
    minutes = st.integers(0, 47 * 60).map(lambda minutes: NOON - timedelta(minutes=minutes))
    names = st.tuples(st.sampled_from("pq"), st.sampled_from("st"), st.just(""), st.just(""), st.just("requests"))
    counts = st.tuples(*[st.integers(0, 1000)] * 4)
    batches = st.lists(st.lists(st.builds(Row, minutes, names, counts), max_size=5), max_size=5)

    @settings(max_examples=25, deadline=None)
    @given(batches)
    def test_every_period_has_the_same_sum(self, batches):
        """Whatever arrives, in whatever order: minutes, hours and days add up to the same."""
        for model in (UsageRow, DecisionCount):
            model.objects.all().delete()
        for batch in batches:
            rollup.add(batch, NOON)

        expected = [sum(row.counts[n] for batch in batches for row in batch) for n in range(4)]
        for period in ("minute", "hour", "day"):
            sums = UsageRow.objects.filter(period=period).aggregate(*map(Sum, COUNTS))
            assert [sums[f"{name}__sum"] or 0 for name in COUNTS] == expected
        for period in ("hour", "day"):
            assert list(sums_by_project(DecisionCount, period)) == list(sums_by_project(UsageRow, period))


def sums_by_project(model, period):
    """Return the decisions of each project and period, those by a policy and by its limits left out."""
    rows = model.objects.filter(period=period, policy_id="").order_by("at", "project_id")
    return rows.values_list("at", "project_id").annotate(*map(Sum, COUNTS[:-1]))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("period", "kept"), [("minute", timedelta(hours=48)), ("hour", timedelta(days=90)), ("day", timedelta(days=730))]
)
def test_rows_are_pruned_when_their_time_is_over(period, kept):
    """Minutes stay for two days, hours for ninety, days for two years. With partitions, to the end of the last one."""
    UsageRowFactory(period=period, at=NOON - kept)
    UsageRowFactory(period=period, at=NOON - kept - (WITHIN_A_PARTITION[period] or timedelta(minutes=1)))

    assert rollup.prune(NOON) == 1
    assert UsageRow.objects.get().at == NOON - kept


@pytest.mark.django_db
def test_pruning_minutes_leaves_hours_and_days():
    """The sums of what is pruned stay."""
    rollup.add([Row(NOON, NAMES, (5, 0, 0, 5))], NOON)

    rollup.prune(NOON + timedelta(hours=49) + WITHIN_A_PARTITION["minute"])

    assert set(UsageRow.objects.values_list("period", "allowed")) == {("hour", 5), ("day", 5)}


@pytest.mark.django_db
def test_batch_ids_are_kept_while_a_batch_may_be_sent_again():
    """A week, which is longer than an enforcer keeps what it has not delivered."""
    for days in (6, 8):
        UsageBatch.objects.create(batch_id=f"proxy-1-{days}", received_at=NOON - timedelta(days=days))

    rollup.prune(NOON)

    assert UsageBatch.objects.get().batch_id == "proxy-1-6"


@pytest.mark.django_db
def test_pruning_may_run_twice():
    """The second run finds nothing."""
    UsageRowFactory(at=datetime(2020, 1, 1, tzinfo=UTC))

    assert (tasks.prune(), tasks.prune()) == (1, 0)


@pytest.mark.django_db
def test_pruning_goes_on_to_the_end():
    """It deletes in pieces, and all of them."""
    old = datetime(2020, 1, 1, tzinfo=UTC)
    UsageBatch.objects.bulk_create(UsageBatch(batch_id=str(number), received_at=old) for number in range(5001))

    assert rollup.prune(NOON) == 5001


@pytest.mark.django_db
def test_an_upgrade_fills_the_sums_of_projects_from_the_usage_that_is_kept():
    """Each request once, so rows of limits are left out, and nothing that the next pruning would delete."""
    now = start_of("hour", timezone.now())
    for token, allowed in (("tok_1", 2), ("tok_2", 3)):
        UsageRowFactory(period="hour", at=now, token_id=token, allowed=allowed, denied=1)
    UsageRowFactory(period="hour", at=now, policy_id="pol_1", limit_name="per-minute", denied=9)
    UsageRowFactory(period="hour", at=now - timedelta(days=16), allowed=5)
    migration = import_module("controlplane.traffic.usage.migrations.0004_counts")

    migration.fill(apps, SimpleNamespace(connection=connection))

    assert list(DecisionCount.objects.values_list("period", "at", "policy_id", "project_id", *COUNTS[:-1])) == [
        ("hour", now, "", "proj_1", 5, 2, 0)
    ]
