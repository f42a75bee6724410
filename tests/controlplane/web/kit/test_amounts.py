"""Amounts are typed as money in every form, and wrong units get advice."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.operations.alerts.models import AlertRule
from controlplane.web.kit.amounts import CostsField
from tests.controlplane.pages import text_of
from tests.controlplane.web.kit.reviews import enforce
from tests.controlplane.web.kit.test_forms import POLICIES, fields_of, policy_fields
from tests.factories import (
    LimitFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UsageRowFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

MONEY = "money (USD)"
BUDGET = {"name": "usd", "unit": MONEY, "algorithm": "fixed_window", "calendar": "month", "window_seconds": ""}
OVERRIDES = "/admin/policies/override/"


def add(client, **limit):
    """Add a policy with one limit in the form, and return the response."""
    return client.post(f"{POLICIES}add/", policy_fields(Policy(slug="budget", name="Budget"), {**BUDGET, **limit}))


def errors_of(response):
    (form,) = response.context["inline_admin_formsets"][0].formset.forms
    return form.errors


@pytest.mark.parametrize("typed", ["500", "500.00", "500 USD", "USD 500", "500.00 usd"])
def test_five_hundred_dollars_are_five_hundred_dollars(as_ann, store, typed):
    """However they are written. The form shows them again so."""
    add(as_ann, quota=typed, rollover="1,250.50")

    limit = Limit.objects.get()
    assert (limit.unit, limit.quota, limit.rollover) == ("micros", 500_000_000, 1_250_500_000)
    page = as_ann.get(f"{POLICIES}{limit.policy_id}/change/").content.decode()
    assert ('value="500.00"' in page, 'value="1,250.50"' in page, f'value="{MONEY}"' in page) == (True, True, True)
    assert "500.00 USD per calendar month" in page
    assert "500,000,000" not in page


def test_a_bucket_of_money_has_a_burst_of_money(as_ann, store):
    bucket = {"algorithm": "token_bucket", "calendar": "", "window_seconds": "1 day"}
    add(as_ann, **bucket, quota="24", burst="2.50")

    assert (Limit.objects.get().quota, Limit.objects.get().burst) == (24_000_000, 2_500_000)


@pytest.mark.parametrize(
    ("limit", "field", "message"),
    [
        ({"quota": "500 EUR"}, "quota", "Must be in USD, the currency of this installation, got '500 EUR'."),
        ({"quota": "500,00"}, "quota", "Must have commas between thousands only, and a point before the decimals"),
        ({"quota": "0.0000001"}, "quota", "Must have at most 6 decimals"),
        ({"quota": "-5"}, "quota", "Must not be negative"),
        ({"quota": "9007199255"}, "quota", "Must be at most 9,007,199,254.740991 USD"),
        ({"quota": "much"}, "quota", "Must be an amount such as 500.00"),
        ({"quota": ""}, "quota", "This field is required."),
        ({"quota": "1", "rollover": "0"}, "rollover", "Must be at least 0.000001 USD"),
        ({"quota": "500.00", "unit": "requests"}, "quota", "Must be an integer such as 1,200, got '500.00'."),
        ({"quota": "500 USD", "unit": "usd"}, "quota", "Must be an integer such as 1,200, got '500 USD'."),
        ({"quota": "500", "unit": "micros"}, "unit", "Choose money (USD), and write amounts such as 500.00."),
    ],
)
def test_what_is_no_amount_is_told_at_its_field(as_ann, limit, field, message):
    """And nothing is saved. An old page that sends micros is never read as money, nor money as micros."""
    response = add(as_ann, **limit)

    assert errors_of(response)[field][0].startswith(message)
    assert not Policy.objects.exists()


def test_a_unit_that_is_changed_and_changed_back_multiplies_nothing(as_ann, store):
    """What was typed stays, and the advice says what becomes of it."""
    saved = LimitFactory(name="usd", quota=500, algorithm="fixed_window", calendar="month", window_seconds=None)
    policy = saved.policy

    def advice(**limit):
        fields = policy_fields(policy, fields_of(saved, **{**BUDGET, **limit}), initial=1)
        told = as_ann.post(f"{POLICIES}advice/", {**fields, "policy": policy.pk}).json()["limits"]["limits-0"]
        return told["sentence"].partition(" for ")[0], [one["text"] for one in told["warnings"]]

    assert advice(quota="500") == (
        "500.00 USD per calendar month",
        ["Nothing is converted to the new unit: 500 requests becomes 500.00 USD. The counter keeps its number, too."],
    )
    assert advice(quota="500", unit="requests") == ("500 requests per calendar month", [])
    fields = policy_fields(policy, fields_of(saved, **BUDGET, quota="500"), initial=1)
    as_ann.post(f"{POLICIES}{policy.pk}/change/", fields)
    assert (Limit.objects.get().unit, Limit.objects.get().quota) == ("micros", 500_000_000)
    fields = policy_fields(
        Policy.objects.get(), fields_of(saved, **BUDGET | {"unit": "requests"}, quota="500"), initial=1
    )
    as_ann.post(f"{POLICIES}{policy.pk}/change/", fields)
    assert (Limit.objects.get().unit, Limit.objects.get().quota) == ("requests", 500)


@pytest.mark.parametrize(
    ("unit", "meant"),
    [
        ("usd", MONEY),
        ("dollars", MONEY),
        ("llm_tokens", "tokens"),
        ("prompt_tokens", "input_tokens"),
        ("request", "requests"),
    ],
)
def test_a_wrong_unit_gets_advice_and_is_no_error(as_ann, store, unit, meant):
    """It is listed as counting nothing, until something is charged in it."""
    told = as_ann.post(
        f"{POLICIES}advice/", policy_fields(Policy(slug="b", name="B"), {**BUDGET, "unit": unit, "quota": "500"})
    ).json()["limits"]["limits-0"]
    said = f"Nothing has been charged in {unit} so far, and a limit in a unit that nothing is charged in admits all. "
    assert {"field": "unit", "text": f"{said}Did you mean {meant}?", "kind": "warn"} in told["warnings"]

    add(as_ann, unit=unit, quota="500")
    assert Limit.objects.get().unit == unit
    assert "counts nothing" in text_of(as_ann.get(POLICIES))

    UsageRowFactory(period="day", unit=unit, cost=1, at=timezone.now() - timedelta(days=40))
    assert "counts nothing" not in text_of(as_ann.get(POLICIES))


def test_limits_that_count_nothing_are_named_where_limits_are_listed(as_ann, store):
    """On the page of a token, and on the one that raises its limits."""
    token = TokenFactory(policy=LimitFactory(name="usd", unit="usd").policy)

    assert "counts nothing" in text_of(as_ann.get(f"/admin/projects/token/{token.pk}/counters/"))
    assert "counts nothing" in text_of(as_ann.get(f"{OVERRIDES}raise/token/{token.pk}/"))


@pytest.mark.parametrize(
    ("limit", "zone"),
    [
        ({}, "Europe/Berlin"),
        ({"time_zone": "UTC"}, "UTC"),
        ({"unit": "requests", "quota": "5"}, "UTC"),
    ],
)
def test_a_new_budget_counts_in_the_zone_of_its_project(as_ann, store, limit, zone):
    """Unless another one is typed. Other limits count in UTC, as before."""
    project = ProjectFactory(time_zone="Europe/Berlin")
    policy = Policy(slug="budget", name="Budget")

    as_ann.post(f"{POLICIES}add/", policy_fields(policy, {**BUDGET, "quota": "500", **limit}, project=project.pk))

    assert Limit.objects.get().time_zone == zone


def test_a_budget_in_another_zone_than_the_bill_gets_advice(as_ann, store):
    project = ProjectFactory(time_zone="Europe/Berlin")
    policy = PolicyFactory()
    project.policy = policy
    project.save()
    fields = {**policy_fields(policy, {**BUDGET, "quota": "500"}), "policy": policy.pk}

    (advice,) = as_ann.post(f"{POLICIES}advice/", fields).json()["limits"]["limits-0"]["warnings"]

    assert advice["field"] == "time_zone"
    assert advice["text"] == (
        "This budget counts in the time zone UTC, and the statements of its project in Europe/Berlin."
    )


def test_an_override_of_money_is_an_amount(as_ann, store):
    """The form shows it as one, and the review and the audit tell it so."""
    limit = LimitFactory(name="usd", unit="micros", quota=50_000_000, policy__slug="budget")
    token = TokenFactory(policy=limit.policy)
    fields = {"limit": limit.pk, "token": token.pk, "quota": "1,500.00 USD", "reason": "launch"}

    review = as_ann.post(f"{OVERRIDES}add/", fields)
    assert "50.00 USD becomes 1,500.00 USD" in text_of(review)
    enforce(as_ann, review)

    override = Override.objects.get()
    assert override.quota == 1_500_000_000
    assert 'value="1,500.00"' in as_ann.get(f"{OVERRIDES}{override.pk}/change/").content.decode()
    audit = text_of(as_ann.get("/admin/policies/auditentry/"))
    assert ("1,500.00 USD" in audit, "1,500,000,000" in audit) == (True, False)
    wrong = as_ann.post(f"{OVERRIDES}add/", {**fields, "quota": "5 EUR"}).context["adminform"].form.errors
    assert wrong["quota"] == ["Must be in USD, the currency of this installation, got '5 EUR'."]


def test_the_page_that_raises_a_limit_shows_money(as_ann, store):
    limit = LimitFactory(name="usd", unit="micros", quota=40_000_000, policy__slug="budget")
    token = TokenFactory(policy=limit.policy)
    OverrideFactory(limit=limit, token=token, quota=60_000_000)

    page = text_of(as_ann.get(f"{OVERRIDES}raise/token/{token.pk}/"))

    assert "already raised from 40.00 USD" in page
    assert "40000000" not in page


def test_the_amount_of_an_alert_and_a_price_are_money(as_ann, store):
    rule = {"name": "spend", "kind": "spend", "amount": "1,250.50 USD", "cool_down_seconds": "1 hour", "active": "on"}
    as_ann.post("/admin/alerts/alertrule/add/", {**rule, "limit": "*", "thresholds": "80"})
    price = {"pattern": "gpt-x", "input": "2.50 USD", "output": "10", "cached_input": "0.075", "tiers": ""}
    as_ann.post("/admin/prices/modelprice/add/", price)

    assert AlertRule.objects.get().amount == 1_250_500_000
    found = ModelPrice.objects.get()
    assert (found.input, found.output, found.cached_input) == (2_500_000, 10_000_000, 75_000)


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        ("tokens = 1200", {"tokens": 1_200}),
        ("USD = 2.50\ntokens = 5", {"tokens": 5, "micros": 2_500_000}),
        ("money (USD) = 2.50 USD", {"micros": 2_500_000}),
    ],
)
def test_costs_of_a_reservation_are_money_by_the_currency(text, costs):
    assert CostsField().clean(text) == costs


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("micros = 5", "Choose USD, and write amounts such as 500.00"),
        ("USD = 5 EUR", "Must be in USD"),
        ("USD = 1\nUSD = 2", "USD must be named once"),
        ("USD", "Each line must hold one cost"),
        ("tokens = 1.5", "Each line must hold a name and an integer"),
    ],
)
def test_wrong_costs_are_told(text, rule):
    with pytest.raises(Exception, match=rule):
        CostsField().clean(text)
