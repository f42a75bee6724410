"""Sums that grow by one statement, whatever the texts in their keys are."""

from datetime import UTC, date, datetime

import pytest
from django.db import DataError, connection, transaction

from controlplane.core.upserts import add_up
from controlplane.traffic.callers.models import RecordedMinute
from controlplane.traffic.reports.models import MonthRow
from controlplane.traffic.usage.models import MeteredRow
from enforcement.metering.tally import COUNT_NAMES

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TEXTS = ["", "NULL", "null", "a,b", "{a}", '"', "\\", '\\"', "a'b", "%s", " a ", "ü€😀", "a\\n"]


def counts(names, **given):
    return [given.get(name, 0) for name in names]


def add(*rows):
    """Each row is a model's name, whether it is approximate, and a number of requests."""
    key = ("hour", NOON, "proj_1", "tok_1")
    keyed = [
        ((*key, name, "exact", approximate, 7), counts(COUNT_NAMES, requests=number))
        for name, approximate, number in rows
    ]
    add_up(MeteredRow, MeteredRow.KEY, COUNT_NAMES, keyed)


def found():
    columns = ("model", "approximate", "requests")
    return {(name, approximate): number for name, approximate, number in MeteredRow.objects.values_list(*columns)}


def test_a_row_is_inserted_and_then_grows():
    add(("gpt", False, 5), ("gpt", True, 2**53))
    add(("gpt", False, 6), ("other", False, -1))

    assert found() == {("gpt", False): 11, ("gpt", True): 2**53, ("other", False): -1}
    row = MeteredRow.objects.get(model="other")
    assert (row.period, row.at, row.price_revision, row.input) == ("hour", NOON, 7, 0)


def test_any_text_is_a_key():
    """Those that mean something within an array of the database, too."""
    for _ in range(2):
        add(*((text, False, number) for number, text in enumerate(TEXTS)))

    assert found() == {(text, False): 2 * number for number, text in enumerate(TEXTS)}


def test_days_and_bits():
    """A month is a day, and the active seconds of a minute are joined."""
    key = (date(2026, 11, 1), "proj_1", "tok_1", "pol_1", "per-minute", "requests", "")
    for _ in range(2):
        add_up(MonthRow, MonthRow.KEY, MonthRow.COUNTS, [(key, counts(MonthRow.COUNTS, allowed=3))])
        row = (("proj_1", "tok_1", NOON), counts(RecordedMinute.COUNTS, allowed=1, seconds=0b101))
        add_up(RecordedMinute, RecordedMinute.KEY, RecordedMinute.COUNTS, [row], {"seconds": "|"})

    assert MonthRow.objects.values_list("month", "allowed").get() == (date(2026, 11, 1), 6)
    assert RecordedMinute.objects.values_list("allowed", "seconds").get() == (2, 0b101)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite refuses neither")
@pytest.mark.parametrize(("model", "requests"), [("x" * 300, 1), ("gpt", 2**63)], ids=["text", "number"])
def test_what_does_not_fit_is_refused(model, requests):
    """It is neither cut nor counted in part."""
    with pytest.raises(DataError), transaction.atomic():
        add(("small", False, 1), (model, False, requests))

    assert found() == {}
