"""The page of models and prices, and the form of a price."""

import json
import time
from datetime import UTC, datetime

import pytest
from django.test import Client
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.prices.models import BrokenBound, ModelAddend, ModelPrice
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.web.kit.forms import version_of
from enforcement.metering.broken import BEYOND
from tests.controlplane.pages import text_of
from tests.factories import MembershipFactory, ModelPriceFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/prices/modelprice/"
EMPTY = dict.fromkeys(("valid_from", "valid_until", "cached_input", "cache_write", "tiers", "change_reason"), "")
EMPTY |= dict.fromkeys(("classes", "multipliers"), "")


def sent(client, address=f"{LIST}add/", **fields):
    """Send the form, and return the errors by field."""
    response = client.post(address, {**EMPTY, "pattern": "gpt-x", "input": "1", "output": "2", **fields})
    return {} if response.status_code == 302 else dict(response.context["adminform"].form.errors)


def test_a_price_is_written_in_units_of_the_currency(store, as_ann):
    tiers = "above 200,000: input 5, output 22.5\nabove 500000: input 6, output 30, cached_input 0"
    fields = {"input": "2.50", "output": "10", "cached_input": "0.075", "tiers": tiers, "change_reason": "contract"}
    assert sent(as_ann, valid_from="2027-01-01T00:00", calls="10000", **fields) == {}

    price = ModelPrice.objects.get()
    assert (price.input, price.output, price.cached_input, price.cache_write) == (2_500_000, 10_000_000, 75_000, None)
    assert price.calls == 10_000_000_000
    assert (price.valid_from, price.source, price.changed_by) == (datetime(2027, 1, 1, tzinfo=UTC), "operator", "ann")
    assert price.tiers == [
        {"above_input": 200_000, "input": 5_000_000, "output": 22_500_000},
        {"above_input": 500_000, "input": 6_000_000, "output": 30_000_000, "cached_input": 0},
    ]
    assert AuditEntry.objects.get().reason == "contract"
    page = as_ann.get(f"{LIST}{price.pk}/change/").content.decode()
    assert "above 200000: input 5, output 22.5" in page
    assert 'value="0.075"' in page


def test_further_classes_are_lines(store, as_ann):
    classes, multipliers = "output_image 30\n\ncontainers 30000", "service_tier=priority 1.7"
    assert (
        sent(as_ann, classes=classes, multipliers=multipliers, tiers="above 5: input 1, output 2, input_audio 3") == {}
    )
    price = ModelPrice.objects.get()
    assert price.classes == {"output_image": 30_000_000, "containers": 30_000_000_000}
    assert price.multipliers == {"service_tier=priority": 1_700}
    assert price.tiers == [{"above_input": 5, "input": 1_000_000, "output": 2_000_000, "input_audio": 3_000_000}]
    page = as_ann.get(f"{LIST}{price.pk}/change/").content.decode()
    assert "output_image 30\ncontainers 30000" in page
    assert "service_tier=priority 1.7" in page


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("classes", "output_image", 'Each line must have the form "output_image 30"'),
        ("classes", "output 30", "with one of input_audio"),
        ("classes", "output_image 1\noutput_image 1", "Each line must have the form"),
        ("classes", "output_image 1\noutput_image 2", "Each line must have the form"),
        ("classes", "output_image -1", "Must not be negative"),
        ("multipliers", "fast", 'Each line must have the form "service_tier=priority 2"'),
        ("multipliers", "fast 2", "Must have names such as service_tier=priority"),
        ("multipliers", "speed=fast 1.0001", "Must have at most three decimals"),
        ("input", "", "This field is required."),
        ("input", "much", "Must be an amount such as 500.00, got 'much'."),
        ("input", "-1", "Must not be negative"),
        ("output", "0.0000001", "at most 6 decimals"),
        ("output", "1000000.01", "Must be at most 1,000,000.00 USD"),
        ("output", "NaN", "Must be an amount"),
        ("cached_input", "Infinity", "Must be an amount"),
        ("tiers", "above 5: input 1", "tiers[0].output: is required"),
        ("tiers", "input 1, output 2", 'Each line must have the form "above 200000: input 5, output 22.5"'),
        ("tiers", "above 5: input 1, input 2", "Each line must have the form"),
        ("tiers", "above 5: input 1, colour 2", "Each line must have the form"),
        ("tiers", "above 5: input 1, output 2\nabove 5: input 1, output 2", "tiers[1].above_input: must be"),
        ("pattern", "", "This field is required."),
        ("valid_until", "2020-01-01T00:00", ""),
    ],
)
def test_a_wrong_field_is_told_at_its_place(store, as_ann, field, value, words):
    errors = sent(as_ann, **{field: value})
    if not words:
        assert errors == {}  # a price that has ended is history, and no error
        return
    assert list(errors) == [field]
    assert words in " ".join(errors[field])
    assert not ModelPrice.objects.exists()


def test_a_price_is_changed_and_an_unchanged_one_is_not(store, as_ann):
    price = ModelPriceFactory(pattern="gpt-x", input=1_000_000, output=2_000_000)
    address = f"{LIST}{price.pk}/change/"
    assert sent(as_ann, address, seen_version=version_of(price)) == {}
    assert not AuditEntry.objects.exists()
    assert sent(as_ann, address, seen_version=version_of(price), input="3") == {}
    assert ModelPrice.objects.get().input == 3_000_000
    stale = sent(as_ann, address, seen_version=version_of(price), input="4")
    assert "changed this price" in str(stale)


def test_a_price_of_the_catalogue_can_only_be_read(store, as_ann):
    tiers = [{"above_input": 5, "input": 1_000_000, "output": 2_000_000}]
    price = ModelPriceFactory(of_the_catalogue=True, pattern="gpt-x", tiers=tiers)
    page = as_ann.get(f"{LIST}{price.pk}/change/")
    assert page.status_code == 200
    assert 'name="input"' not in page.content.decode()
    assert "4.00 USD" in text_of(page)
    assert "above 5: input 1, output 2" in text_of(page)
    assert as_ann.post(f"{LIST}{price.pk}/change/", {"input": "9"}).status_code == 403
    assert as_ann.post(f"{LIST}{price.pk}/delete/", {"post": "yes"}).status_code == 403
    as_ann.post(
        LIST, {"action": "delete_selected", "_selected_action": [price.pk], "post": "yes", "change_reason": "x"}
    )
    assert ModelPrice.objects.get() == price


def test_own_prices_are_deleted_in_one_change(store, as_ann):
    prices = [ModelPriceFactory(), ModelPriceFactory()]
    chosen = [price.pk for price in prices]
    as_ann.post(LIST, {"action": "delete_selected", "_selected_action": chosen, "post": "yes", "change_reason": "old"})
    assert not ModelPrice.objects.exists()
    assert set(AuditEntry.objects.values_list("action", "reason")) == {("modelprice.delete", "old")}


def test_the_list_says_what_is_known(store, as_ann):
    ModelPriceFactory(pattern="gpt-x", input=2_500_000, cached_input=75_000)
    page = text_of(as_ann.get(LIST))
    assert "2.50 USD" in page
    assert "0.075 USD" in page
    assert "Prices are in USD for 1,000,000 tokens." in page


def test_set_price_names_the_model(store, as_ann):
    page = as_ann.get(f"{LIST}add/?pattern=ft%3A4o-mini%3Ax").content.decode()
    assert 'value="ft:4o-mini:x"' in page
    assert "USD for a million tokens." in page


def test_members_read_prices_and_set_none(store, client):
    """Prices are those of every project."""
    client.force_login(MembershipFactory(role="owner").user)
    price = ModelPriceFactory()

    assert client.get(LIST).status_code == 200
    assert client.get(f"{LIST}{price.pk}/change/").status_code == 200
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{price.pk}/change/", {"input": "9"}).status_code == 403


def test_the_page_says_which_revision_is_in_use(store, as_ann, client_of_store):
    """Also when the outbox is pruned."""
    assert "No prices are published." in text_of(as_ann.get(LIST))
    sent(as_ann)
    OutboxEntry.objects.all().delete()
    heartbeat = {"id": "one", "state": "ok", "seen_at_us": time.time_ns() // 1000, "price_revision": 1}
    client_of_store.zadd("sg:{fleet}:instances", {"one": 1, "two": 1})
    client_of_store.set("sg:{fleet}:instance:one", json.dumps(heartbeat))
    client_of_store.set("sg:{fleet}:instance:two", json.dumps({**heartbeat, "id": "two", "price_revision": None}))

    assert "Published as revision 1, in use on 1 of 1 instances that meter requests." in text_of(as_ann.get(LIST))
    store.freeze()
    assert "Published as revision 1. The store did not answer in time." in text_of(as_ann.get(LIST))


def test_the_page_names_models_whose_bounds_were_broken(store, as_ann, client):
    """And what is reserved for that. Members see what their projects have sent."""
    own, other = ProjectFactory(slug="own"), ProjectFactory()
    fields = {"format": "gemini", "requests": 3, "last_at": timezone.now()}
    BrokenBound.objects.create(project_id=own.pk, model="m-1", added=1_700, **fields)
    BrokenBound.objects.create(project_id=other.pk, model="m-2", added=0, **fields)
    BrokenBound.objects.create(project_id=other.pk, model="m-3", added=BEYOND, **fields)
    price = ModelPriceFactory(of_the_catalogue=True, pattern="m-*")
    ModelAddend.objects.create(pattern="m-*", tokens=1_700)
    ModelAddend.objects.create(pattern="n", tokens=BEYOND)
    page = text_of(as_ann.get(LIST))

    assert "m-1 (gemini): 3 requests in all, to which the provider added up to 1,700 tokens. " in page
    assert "m-2 (gemini): 3 requests in all. " in page
    assert "m-3 (gemini): 3 requests in all, to which the provider added more than 65,536 tokens. " in page
    assert "n Bounds deny the requests. over 65,536" in page
    assert "reported: 1,700" in text_of(as_ann.get(f"{LIST}{price.pk}/change/"))
    client.force_login(MembershipFactory(project=own).user)
    page = text_of(client.get(LIST))
    assert "m-1 (gemini)" in page
    assert "m-2 (gemini)" not in page
    # Other projects may have raised it, as none of their own asks for the model.
    assert "Tokens that providers add" not in page
    assert "reported: " not in text_of(client.get(f"{LIST}{price.pk}/change/"))


def test_what_was_reported_is_forgotten(store, as_ann, client_of_store):
    """With an audit entry, until the next report. Those who only read the page cannot do it."""
    ModelPriceFactory(of_the_catalogue=True, pattern="m-*")
    addend = ModelAddend.objects.create(pattern="m-*", tokens=1_700, reported=1_900)
    address = f"{LIST}addends/{addend.pk}/forget/"
    member = Client()
    member.force_login(MembershipFactory(role="owner").user)
    assert "Forget" not in text_of(member.get(LIST))
    assert member.post(address).status_code == 403
    assert as_ann.get(address).status_code == 405
    assert as_ann.post(f"{LIST}addends/add_none/forget/").status_code == 404
    assert "Forget" in text_of(as_ann.get(LIST))

    for _ in range(2):
        assert as_ann.post(address).status_code == 302
    assert "Tokens that providers add" not in text_of(as_ann.get(LIST))
    assert ModelAddend.objects.values_list("tokens", "reported").get() == (0, 0)
    (entry,) = AuditEntry.objects.all()
    assert (entry.action, entry.actor, entry.before["added_tokens"]) == ("modeladdend.update", "ann", 1_700)
    assert "added_tokens" not in client_of_store.get("sg:{doc}:prices")
