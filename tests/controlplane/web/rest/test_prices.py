"""The REST resource of prices."""

import json
from functools import partial

import pytest

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.prices.models import ModelPrice
from enforcement.metering.price_documents import parse_prices, price_to_json
from tests.controlplane.conftest import at_once
from tests.factories import ManagementKeyFactory, ModelPriceFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

PRICE = {"model": "gpt-5*", "input": 1_250_000, "output": 10_000_000}


def errors(response):
    return {error["pointer"]: error["detail"] for error in response.json()["errors"]}


def test_a_price_is_set_by_its_model_and_beginning(store, api):
    made = api("PUT", "prices", {**PRICE, "cached_input": 125_000}, Sluicegate_Reason="contract")

    assert made.status_code == 201
    assert made["Sluicegate-Revision"] == "1"
    body = made.json()
    assert made["Location"] == f"/api/v1/prices/{body['id']}"
    assert {**body, "id": "", "changed_at": ""} == {
        **PRICE,
        "id": "",
        "source": "operator",
        "currency": "USD",
        "valid_from": None,
        "valid_until": None,
        "cached_input": 125_000,
        "cache_write": None,
        "calls": None,
        "classes": {},
        "multipliers": {},
        "bounds": {},
        "tiers": [],
        "changed_by": "ann",
        "changed_at": "",
    }
    assert AuditEntry.objects.get().reason == "contract"

    again = api("PUT", "prices", {**PRICE, "input": 2}, If_Match=made["ETag"])
    assert (again.status_code, again.json()["id"], again.json()["cached_input"]) == (200, body["id"], None)
    assert api("PUT", "prices", {**PRICE, "valid_from": "2027-01-01T00:00:00Z"}).status_code == 201
    assert [row["model"] for row in api("GET", "prices").json()["results"]] == ["gpt-5*", "gpt-5*"]


def test_a_price_of_calls_is_published(store, api):
    assert api("PUT", "prices", {**PRICE, "calls": 10**10}).json()["calls"] == 10**10
    (price,) = ModelPrice.objects.as_document(1)["overrides"]
    assert price["calls"] == 10**10


def test_further_classes_and_multipliers_are_published(store, api):
    more = {"classes": {"output_image": 30, "containers": 5}, "multipliers": {"service_tier=flex": 500}}
    body = api("PUT", "prices", {**PRICE, **more}).json()
    assert {name: body[name] for name in more} == more
    (price,) = ModelPrice.objects.as_document(1)["overrides"]
    assert {"output_image": 30, "containers": 5, "multipliers": {"service_tier=flex": 500}}.items() <= price.items()
    assert api("PUT", "prices", PRICE).json()["classes"] == {}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("classes", {"input": 1}, "Must be an object with some of input_audio"),
        ("classes", [], "Must be an object with some of"),
        ("classes", {"output_image": -1}, "output_image: must be an integer from 0"),
        ("classes", {"output_image": True}, "output_image: must be an integer from 0"),
        ("multipliers", {"flex": 500}, "Must have names such as service_tier=priority"),
        ("multipliers", {"a=b": -1}, "must be an integer from 0 to 1000000"),
        ("multipliers", [], "Must be an object"),
    ],
)
def test_classes_that_no_enforcer_would_read_are_refused(store, api, field, value, words):
    """The error names the field."""
    answer = api("PUT", "prices", {**PRICE, field: value})
    assert answer.status_code == 400
    assert words in str(answer.json())
    assert field in str(answer.json()["errors"])


def test_hosts_whose_costs_are_charged_are_published_with_prices_only(store, api, settings):
    settings.REPORTED_COSTS = ["openrouter.ai"]
    assert ModelPrice.objects.as_document(1) is None
    api("PUT", "prices", PRICE)
    assert ModelPrice.objects.as_document(1)["reported_costs"] == ["openrouter.ai"]


def test_the_bounds_of_a_price_are_published(store, api):
    """An enforcer reads them; a price without them has no such fields, so that an earlier one reads it, too."""
    bounds = {"file": 100_000, "added_tokens": 2_000, "default_cap": 16_000}
    assert api("PUT", "prices", {**PRICE, "bounds": bounds}).json()["bounds"] == bounds
    document = ModelPrice.objects.as_document(1)
    (price,) = parse_prices(json.dumps(document)).overrides
    assert (dict(price.part_tokens), price.added_tokens, price.default_cap) == ({"file": 100_000}, 2_000, 16_000)
    assert price_to_json(price) == document["overrides"][0]

    api("PUT", "prices", PRICE)
    assert not {"part_tokens", "added_tokens", "default_cap"} & ModelPrice.objects.as_document(1)["overrides"][0].keys()


def test_a_price_that_was_changed_meanwhile_is_not_overwritten(store, api):
    tag = api("PUT", "prices", PRICE)["ETag"]
    api("PUT", "prices", {**PRICE, "input": 2})
    assert api("PUT", "prices", {**PRICE, "input": 3}, If_Match=tag).status_code == 412
    assert api("PUT", "prices", {**PRICE, "model": "new"}, If_Match=tag).status_code == 412
    assert ModelPrice.objects.get().input == 2


def test_a_price_is_read_changed_and_deleted_by_its_id(store, api):
    price = ModelPriceFactory(pattern="gpt-x")
    address = f"prices/{price.pk}"

    assert api("GET", address).json()["model"] == "gpt-x"
    changed = api("PATCH", address, {"output": 9})
    assert (changed.status_code, changed.json()["output"], changed.json()["input"]) == (200, 9, 1_000_000)
    assert api("DELETE", address).status_code == 204
    assert api("GET", address).status_code == 404
    assert api("GET", "prices/prc_0").status_code == 404
    assert [entry.action for entry in AuditEntry.objects.order_by("id")] == ["modelprice.update", "modelprice.delete"]


def test_a_price_of_the_catalogue_is_read_only(store, api):
    """PUT makes one of the operator beside it, which comes first."""
    price = ModelPriceFactory(of_the_catalogue=True, pattern="gpt-x")
    for method in ("PATCH", "DELETE"):
        refused = api(method, f"prices/{price.pk}", {"input": 1} if method == "PATCH" else None)
        assert (refused.status_code, refused.json()["code"]) == (409, "price_of_the_catalogue")
    assert api("PUT", "prices", {**PRICE, "model": "gpt-x"}).status_code == 201
    assert sorted(ModelPrice.objects.values_list("source", flat=True)) == ["catalogue", "operator"]
    assert len(api("GET", "prices?source=catalogue&model=gpt-x").json()["results"]) == 1


@pytest.mark.parametrize(
    ("change", "pointer", "rule"),
    [
        ({"input": -1}, "#/input", "greater than or equal to 0"),
        ({"input": 1.5}, "#/input", "without a decimal point"),
        ({"input": True}, "#/input", "Must be an integer."),
        ({"input": 10**12 + 1}, "#/input", "less than or equal to 1000000000000"),
        ({"calls": -1}, "#/calls", "greater than or equal to 0"),
        ({"bounds": {"file": -1}}, "#/bounds", "from 0 to"),
        ({"bounds": {"tape": 1}}, "#/bounds", "Must be an object with some of image, audio"),
        ({"bounds": {"added_tokens": 65_537}}, "#/bounds", "added_tokens: must be an integer from 0 to 65536"),
        ({"bounds": {"default_cap": 0}}, "#/bounds", "default_cap: must be an integer from 1 to 2147483647"),
        ({"bounds": []}, "#/bounds", "Must be an object"),
        ({"currency": "EUR"}, "#/currency", "Must be USD, the currency of this installation."),
        ({"source": "catalogue"}, "#/source", "the server sets it"),
        ({"model": "x" * 257}, "#/model", "no more than 256"),
        ({"model": 7}, "#/model", "Must be a string."),
        ({"valid_from": "2027-01-01"}, "#/valid_from", "RFC 3339"),
        (
            {"valid_from": "2027-01-02T00:00:00Z", "valid_until": "2027-01-01T00:00:00Z"},
            "#/valid_until",
            "Must be after",
        ),
        ({"tiers": [{"above_input": 0, "input": 1, "output": 1}]}, "#/tiers", "tiers[0].above_input: must be"),
        ({"tiers": "many"}, "#/tiers", "Must be a list"),
        ({"surprise": 1}, "#/surprise", "Unknown field."),
    ],
)
def test_a_wrong_field_is_refused_and_named(store, api, change, pointer, rule):
    refused = api("PUT", "prices", {**PRICE, **change})
    assert refused.status_code == 400
    assert rule in errors(refused)[pointer]
    assert not ModelPrice.objects.exists()


def test_a_missing_price_is_named(store, api):
    refused = api("PUT", "prices", {"model": "gpt-x"})
    assert set(errors(refused)) == {"#/input", "#/output"}


def test_prices_that_enforcers_would_refuse_together_are_refused(store, api, monkeypatch):
    """The limit of the document is that of the library. Nothing is half done."""
    monkeypatch.setattr("enforcement.metering.price_documents.MAX_PRICES", 1)
    assert api("PUT", "prices", PRICE).status_code == 201
    refused = api("PUT", "prices", {**PRICE, "model": "other"})
    assert refused.status_code == 400
    assert "The prices cannot be published: overrides: must be a list of at most 1 items." in str(refused.json())
    assert ModelPrice.objects.count() == 1


def test_each_scope_opens_its_own_door(store, call):
    reader, other = ManagementKeyFactory(scopes=["prices:read"]), ManagementKeyFactory(scopes=["policies:write"])
    limited = ManagementKeyFactory(scopes=["prices:read", "prices:write"], all_projects=False)
    limited.projects.set([ProjectFactory()])

    assert call("GET", "prices", key=reader).status_code == 200
    assert call("PUT", "prices", PRICE, key=reader).status_code == 403
    assert call("GET", "prices", key=other).status_code == 403
    assert call("GET", "prices", key=limited).status_code == 200
    assert call("PUT", "prices", PRICE, key=limited).status_code == 403
    assert call("POST", "prices", PRICE, key=limited).status_code == 405


def test_a_beginning_that_another_price_has_is_refused_at_the_name_that_clients_know(store, api):
    api("PUT", "prices", PRICE)
    other = api("PUT", "prices", {**PRICE, "valid_from": "2027-01-01T00:00:00Z"}).json()

    refused = api("PATCH", f"prices/{other['id']}", {"valid_from": None})

    assert (refused.status_code, errors(refused)) == (400, {"#/model": ModelPrice.ONCE})


def test_all_who_change_one_price_at_once_by_name_and_by_id_succeed(store, web):
    """They lock in one order. Otherwise PostgreSQL would end some of them, because they wait for each other."""
    key = ManagementKeyFactory()
    made = web("PUT", "prices", PRICE, key=key).body["id"]
    by_name = [partial(web, "PUT", "prices", {**PRICE, "input": n}, key=key) for n in range(4)]
    by_id = [partial(web, "PATCH", f"prices/{made}", {"output": n}, key=key) for n in range(4)]

    answers = at_once([*by_name, *by_id])

    assert [answer.status_code for answer in answers] == [200] * 8


def test_of_two_who_set_one_price_at_once_both_succeed_and_one_row_is_left(store, web):
    """The second waits for the first, and replaces its price."""
    key = ManagementKeyFactory(scopes=["prices:write"])
    calls = [partial(web, "PUT", "prices", {**PRICE, "input": number}, key=key) for number in range(4)]
    answers = at_once(calls)

    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.body["id"] for answer in answers}) == 1
    assert ModelPrice.objects.get().input in range(4)
    assert AuditEntry.objects.count() == 4
