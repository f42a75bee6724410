"""The worker keeps lost reservations in SQL, each once, and finishes what operators have begun."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.policies.models import AuditEntry
from controlplane.publishing.changes import Actor
from controlplane.reservations import listing, recording
from controlplane.reservations.models import Reservation, ReservationCount
from controlplane.usage import daily_reports, report, report_render
from enforcement import Limiter
from enforcement.model.keys import Keys
from enforcement.plan.records import RecordKeys

pytestmark = pytest.mark.django_db(transaction=True)

ANN = Actor("ann", "admin", "req-1")


def record(client_of_store, **later) -> int:
    return recording.record(timezone.now() + timedelta(**later), client_of_store)


def lose(client_of_store, pk: str) -> None:
    """End the life of a reservation, as if its process had not prolonged it."""
    where = RecordKeys.from_id(Keys(), pk)
    client_of_store.zadd(where.index, {where.ident: 1})


def test_each_is_saved_once_and_counted(reserved, client_of_store):
    assert (record(client_of_store), Reservation.objects.count()) == (0, 0)
    count = ReservationCount.objects.get()
    assert (count.open, count.lost, count.lost_since) == (1, 0, None)

    lose(client_of_store, reserved)

    entries = AuditEntry.objects.filter(object_type="reservation").order_by("id")
    assert [entry.action for entry in entries] == ["reservation.settle", "reservation.settled_elsewhere"]


def test_metrics_have_the_numbers_of_each_project(client, reserved, client_of_store, settings):
    settings.METRICS_NETWORKS = ["127.0.0.0/8"]
    lose(client_of_store, reserved)
    record(client_of_store)

    text = client.get("/metrics").content.decode()

    assert 'sluicegate_reservations{project="chat",state="lost"} 1.0' in text
    assert 'sluicegate_reservations{project="chat",state="open"} 0.0' in text
    assert 'sluicegate_reservations{project="",state="lost"} 0.0' in text
    assert 'sluicegate_reservations_oldest_lost_seconds{project="chat"}' in text


def test_the_report_of_the_day_has_models_and_lost_ones(lost):
    """Two requests of a killed process, and one that it had settled."""
    lost(2)
    today = timezone.now().date()
    built = report.build(today, timezone.now())

    text = report_render.as_text(built)
    assert "2 reservations lost by their process, 2 of them not settled yet" in text
    assert [line.split() for line in text.splitlines() if line.startswith("gpt-x")] == [
        ["gpt-x", "1", "100", "30", "0.000220"]
    ]
    html = report_render.as_html(built)
    assert "2 reservations lost their process" in html
    assert '<th scope="row">gpt-x</th>' in html
    assert daily_reports.write(today, timezone.now()).summary["reservations"] == {"lost": 2, "unsettled": 2}


def test_those_of_limits_in_code_belong_to_nobody_here(store, client_of_store):
    from enforcement import Limit

    with Limiter(store.url, timeout=2.0) as limiter:
        made = limiter.reserve(Limit(name="x", quota=5, window_seconds=60), "user:1", life=60)
        with pytest.raises(listing.Unknown):
            listing.read(made.id)
