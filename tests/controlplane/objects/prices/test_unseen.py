"""What requests of last week would be charged of which nobody has seen the whole answer, as the doctor shows it."""

import pytest
from django.utils import timezone

from controlplane.objects.prices.models import BrokenBound
from controlplane.objects.prices.unseen import publish_week, unseen_week
from enforcement.doctor.fleet import instances
from enforcement.doctor.prices import last_week
from enforcement.model.keys import Keys
from tests.controlplane.objects.prices.test_seen import usage_table
from tests.factories import ModelPriceFactory

pytestmark = pytest.mark.django_db(transaction=True)


def add(model, settled_as, days=0, **counts):
    at = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0) - timezone.timedelta(days=days)
    key = {"period": "day", "at": at, "project_id": "proj_1", "token_id": "tok_1", "settled_as": settled_as}
    usage_table().objects.create(model=model, **key, **counts)


def test_the_doctor_shows_what_would_have_been_charged(store, client_of_store):
    """By the usual cap, or by the estimates of the same model that were kept."""
    ModelPriceFactory(pattern="*", input=1_000_000, output=4_000_000)
    add("gpt-x", "observed", requests=2, estimated_input=200, input=200, output=10, micros=240)
    add("gpt-y", "observed", days=3, requests=1, estimated_input=100, output=1, micros=104)
    add("gpt-y", "estimated", days=5, requests=2, input=100, output=1_000, micros=4_100)
    add("gpt-x", "observed", days=9, requests=7, micros=7)
    add("gpt-x", "exact", requests=9, micros=9)
    now = timezone.now()

    found = publish_week(now, client_of_store)

    assert (
        found
        == unseen_week(now)
        == {
            "requests": 3,
            "charged": 344,
            "estimated": 2 * (100 + 4 * 4_096) + (100 + 4 * 500),
        }
    )
    (finding,) = last_week(client_of_store, Keys())
    assert (finding.name, finding.level) == ("last week", "ok")
    assert "3 requests in 7 days" in finding.value
    assert "0.04" in finding.advice  # of 35,068 micros


def test_the_doctor_knows_of_bounds_that_were_broken_in_the_week(store, client_of_store):
    """Also if the processes that saw it have ended."""
    now = timezone.now()
    for model, days in (("new", 6), ("old", 8)):
        at = now - timezone.timedelta(days=days)
        BrokenBound.objects.create(project_id="proj_1", model=model, format="gemini", requests=3, last_at=at)
    publish_week(now, client_of_store)

    (found,) = (one for one in instances(client_of_store, Keys()) if one.name == "bounds")
    assert found.value.endswith(": new, gemini (3)")


def test_the_doctor_is_silent_where_there_is_nothing_to_say(store, client_of_store):
    assert list(last_week(client_of_store, Keys())) == []
    publish_week(timezone.now(), client_of_store)
    assert list(last_week(client_of_store, Keys())) == []
    client_of_store.set(Keys().last_week, "[1")
    assert list(last_week(client_of_store, Keys())) == []
