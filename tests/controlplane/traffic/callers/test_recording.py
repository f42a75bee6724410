import json
from datetime import date, timedelta

import pytest

from controlplane.traffic.callers import recording
from controlplane.traffic.callers.chunks import Chunk
from controlplane.traffic.callers.models import RecordedDay, RecordedMinute
from controlplane.traffic.stream.batches import StreamBatch
from controlplane.traffic.usage.drain import drain
from tests.controlplane.traffic.usage.conftest import NOON, NOON_MINUTE, USAGE, row

LATER = NOON + timedelta(minutes=10)
IN_SECOND_11 = [1 << 11, 0, 4, 0, 0, 0, 0]


@pytest.fixture
def report(client_of_store):
    """Append a batch as an enforcer does, with the spreads of its rows."""

    def send(batch_id, *rows, spread=()):
        fields = {"id": batch_id, "instance": "proxy-1", "rows": json.dumps(rows)}
        client_of_store.xadd(USAGE, fields | ({"spread": json.dumps(spread)} if spread else {}))

    return send


@pytest.mark.django_db(transaction=True)
def test_a_batch_is_recorded_by_minute_and_folded_into_its_day(report):
    """The parts of one minute add up over instances, and its active seconds are joined."""
    limit = row(policy="pol_1", limit="minute", allowed=4)
    report("proxy-1-1", limit, row(allowed=3, denied=1, cost=3), spread=[[1, *IN_SECOND_11]])
    report("proxy-2-1", row(allowed=2, cost=2), spread=[[0, 1 << 59, 0, 0, 0, 0, 0, 2]])
    drain(NOON)
    minute = RecordedMinute.objects.get()
    assert (minute.allowed, minute.denied, minute.seconds) == (5, 1, 1 << 11 | 1 << 59)

    assert recording.fold(LATER) == 1

    day = RecordedDay.objects.get()
    chunk = Chunk.read(day.body)
    assert (day.day, day.token_id, day.requests, day.allowed, day.coarse) == (date(2026, 11, 24), "tok_1", 6, 5, 0)
    assert (chunk.minutes.tolist(), chunk.demand.tolist()) == ([720], [6])
    assert chunk.parts.tolist() == [[0, 4, 0, 0, 0, 2]]
    assert not RecordedMinute.objects.exists()


@pytest.mark.django_db
def test_late_rows_are_folded_into_the_same_day():
    """An instance that was cut off reports after the others; each request is counted once."""
    batches = [StreamBatch.parse("1-0", fields(row(allowed=n)), NOON) for n in (5, 7)]
    for batch in batches:
        recording.add(batch.rows, NOON)
        recording.fold(LATER)

    day = RecordedDay.objects.get()
    assert (day.requests, day.coarse, Chunk.read(day.body).demand.tolist()) == (12, 12, [12])


@pytest.mark.django_db
def test_the_present_minute_waits_unless_a_preview_asks():
    """A minute is reported in pieces, so its day is written when it is over, or when somebody looks."""
    recording.add(StreamBatch.parse("1-0", fields(row()), NOON).rows, NOON)

    assert recording.fold(NOON + timedelta(minutes=1)) == 0
    assert recording.fold_few(NOON + timedelta(minutes=1)) == NOON + timedelta(minutes=1)
    assert RecordedDay.objects.get().requests == 1


@pytest.mark.django_db
def test_a_preview_does_not_wait_for_much_work():
    """With many rows the days end where the task has come to."""
    recording.add(StreamBatch.parse("1-0", fields(row(), row(token="tok_2")), NOON).rows, NOON)

    assert recording.fold_few(LATER, at_most=1) == NOON
    assert RecordedMinute.objects.count() == 2


@pytest.mark.django_db
def test_a_late_minute_does_not_hide_the_later_ones():
    """It is folded at once, so the days end where the rows of the last minutes begin."""
    hours_ago = NOON_MINUTE - 300
    recording.add(StreamBatch.parse("1-0", fields(row(), row(token="tok_2"), row(hours_ago)), NOON).rows, NOON)

    assert recording.fold_few(NOON + timedelta(minutes=1), at_most=1) == NOON
    assert RecordedDay.objects.get().requests == 1


@pytest.mark.django_db
def test_old_days_are_deleted():
    """Eight days are kept."""
    for days in (0, 7, 8):
        minute = NOON_MINUTE - days * 24 * 60
        recording.add(StreamBatch.parse("1-0", fields(row(minute)), NOON).rows, NOON)
    recording.fold(LATER)

    assert recording.prune(NOON + timedelta(days=1)) == 1
    assert [day.day.day for day in RecordedDay.objects.order_by("day")] == [17, 24]


def fields(*rows, **more):
    return {"id": "proxy-1-1", "rows": json.dumps(rows), **{name: json.dumps(value) for name, value in more.items()}}


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        ([[0, 1, 1]], "spread[0]: must be a list of 8 integers."),
        ([[1, *IN_SECOND_11]], "spread[0].row: must be the index of a row without a limit, once, got 1."),
        ([[0, *IN_SECOND_11]] * 2, "spread[1].row: must be the index of a row without a limit, once, got 0."),
        ([[0, 2**60, 0, 4, 0, 0, 0, 0]], f"spread[0].seconds: must be 60 bits, got {2**60}."),
        ([[0, 1, -1, 4, 0, 0, 0, 0]], f"spread[0].requests: must be an integer from 0 to {2**50}, got -1."),
    ],
)
def test_a_spread_that_no_enforcer_would_send_is_refused(spread, message):
    """Every client of the store may write to the stream, so it is read strictly."""
    batch = StreamBatch.parse("1-0", fields(row(), row(policy="pol_1", limit="minute"), spread=spread), NOON)

    assert [one.reason for one in batch.refused][:1] == [message]
    assert len(batch.rows) == 2
