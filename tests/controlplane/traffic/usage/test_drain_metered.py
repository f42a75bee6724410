"""Metered rows of the usage stream: each batch counts once, in every period, and a wrong one is set aside whole."""

import json
from datetime import timedelta

import pytest
from django.db.models import Sum

from controlplane.traffic.usage import rollup
from controlplane.traffic.usage.drain import drain
from controlplane.traffic.usage.models import MeteredRow, UsageRow
from tests.controlplane.traffic.usage.conftest import NOON, NOON_MINUTE, USAGE, row

pytestmark = pytest.mark.django_db(transaction=True)


def settled(minute: int = NOON_MINUTE, **changed) -> list:
    """One row: one request of tok_1 for gpt-x that the provider has reported."""
    fields = {"project": "proj_1", "token": "tok_1", "model": "gpt-x", "settled_as": "exact", "approximate": 0}
    fields |= {"price_revision": 7, "requests": 1, "input": 100, "cached_input": 5, "cache_write": 6, "output": 30}
    fields |= {"micros": 220, "estimated_input": 90, "calls": 2}
    return [minute, *(fields | changed).values()]


@pytest.fixture
def report(client_of_store):
    def send(batch_id: str, *rows: list) -> None:
        fields = {"id": batch_id, "instance": "proxy-1", "rows": json.dumps([row()]), "metered": json.dumps(rows)}
        client_of_store.xadd(USAGE, fields)

    return send


def test_a_batch_that_comes_twice_counts_once(report, client_of_store):
    for _ in range(2):
        report("proxy-1-1", settled(), settled(settled_as="observed"), settled(approximate=1))
        drain(NOON, client_of_store)
    report("proxy-1-2", settled(NOON_MINUTE + 1))
    drain(NOON, client_of_store)

    hours = MeteredRow.objects.filter(period="hour").order_by("settled_as", "approximate")
    assert [(it.settled_as, it.approximate, it.requests, it.input, it.micros, it.calls) for it in hours] == [
        ("exact", False, 2, 200, 440, 4),
        ("exact", True, 1, 100, 220, 2),
        ("observed", False, 1, 100, 220, 2),
    ]
    by_period = MeteredRow.objects.values_list("period").annotate(Sum("output"))
    assert dict(by_period.order_by()) == {"minute": 120, "hour": 120, "day": 120}
    assert UsageRow.objects.get(period="day").allowed == 2


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"project": ""}, "metered[0].project_id"),
        ({"model": "gpt-\u0000"}, "metered[0].model"),
        ({"model": "x" * 129}, "metered[0].model"),
        ({"settled_as": ""}, "metered[0].settled_as"),
        ({"approximate": 2}, "metered[0].approximate: must be 0 or 1"),
        ({"approximate": True}, "metered[0].approximate: must be 0 or 1"),
        ({"price_revision": -1}, "metered[0].price_revision"),
        ({"requests": 1.5}, "metered: numbers must be integers"),
        ({"micros": -1}, "metered[0].micros"),
        ({"input": 2**60}, "metered[0].input"),
        ({"more": 1}, "metered[0]: must be a list of 15 or 18 fields"),
    ],
)
def test_a_wrong_row_is_set_aside(report, client_of_store, changed, reason):
    report("proxy-1-1", settled(**changed))

    assert drain(NOON, client_of_store).rejected == 1
    ((_, kept),) = client_of_store.xrange("sg:{usage}:stream:rejected")
    assert reason in kept["reason"]
    assert UsageRow.objects.exists() is ("refused" in kept)  # one that is no JSON sets its batch aside
    assert not MeteredRow.objects.exists()


@pytest.mark.parametrize("text", ["{}", "[", "[[]]", '[{"a": 1, "a": 2}]'])
def test_what_is_no_list_of_rows_is_set_aside(client_of_store, db, text):
    client_of_store.xadd(USAGE, {"id": "proxy-1-1", "instance": "proxy-1", "rows": "[]", "metered": text})

    assert drain(NOON, client_of_store).rejected == 1


def test_a_batch_of_an_earlier_release_has_none(report_usage, client_of_store):
    report_usage("proxy-1-1", row())

    assert drain(NOON, client_of_store).counted == 1
    assert not MeteredRow.objects.exists()


def test_what_a_row_of_a_development_version_says_of_text_is_left_out(report, client_of_store):
    report("proxy-1-1", settled(), settled(text_requests=1, text_bytes=400, text_input=90))
    drain(NOON, client_of_store)

    assert MeteredRow.objects.get(period="day").requests == 2


def test_rows_are_pruned_as_other_usage(report, client_of_store):
    report("proxy-1-1", settled())
    drain(NOON, client_of_store)

    left = []
    # Further ahead than a partition of days or months, in which rows stay until all of it is over.
    for kept in (timedelta(hours=72), timedelta(days=91 + 31), timedelta(days=731)):
        rollup.prune(NOON + kept)
        left.append(sorted(MeteredRow.objects.values_list("period", flat=True)))
    assert left == [["day", "hour"], ["day"], []]
