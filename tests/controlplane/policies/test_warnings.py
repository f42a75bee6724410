"""What REST says of limits that may be a mistake, and are no error."""

import pytest

from controlplane.policies.models import Policy
from tests.factories import LimitFactory, PolicyFactory, ProjectFactory, UsageRowFactory

pytestmark = pytest.mark.django_db(transaction=True)

USD = {"name": "usd", "algorithm": "fixed_window", "quota": 500, "calendar": "month", "unit": "usd"}
SAID = (
    "limits.usd.unit: Nothing has been charged in usd so far, and a limit in a unit that nothing is charged in admits "
    "all. Did you mean micros, millionths of USD?"
)


def test_a_unit_that_nothing_charges_is_told_and_saved(api, store):
    """With every response that has the policy, until something is charged in it."""
    made = api("POST", "policies", {"slug": "b", "name": "B", "limits": [USD]})
    read = api("GET", "policies/b")
    put = api("PUT", "policies/b", read.json())

    assert [one.status_code for one in (made, read, put)] == [201, 200, 200]
    assert [one["Sluicegate-Warning"] for one in (made, read, put)] == [SAID] * 3
    UsageRowFactory(period="day", unit="usd", cost=1)
    assert "Sluicegate-Warning" not in api("GET", "policies/b").headers


def test_a_dry_run_has_all_warnings(api, store):
    """The header has the first of them."""
    limits = [{**USD, "name": f"n{number}", "unit": "images"} for number in range(7)]
    response = api("POST", "policies?dry_run=true", {"slug": "b", "name": "B", "limits": limits})

    warnings = response.json()["warnings"]
    assert [(one["limit"], one["field"]) for one in warnings] == [(f"n{number}", "unit") for number in range(7)]
    assert "Usual units are requests, input_tokens, micros" in warnings[0]["message"]
    made = api("POST", "policies", {"slug": "b", "name": "B", "limits": limits})
    assert made["Sluicegate-Warning"].endswith(" 2 more.")
    assert api("PATCH", "policies/b?dry_run=true", {"name": "C"}).json()["warnings"] == warnings


def test_a_budget_of_other_months_than_the_bill_is_told(api, store):
    """REST leaves the zone as it is given, which is UTC if it is left out."""
    ProjectFactory(slug="chat", time_zone="Europe/Berlin")
    body = {"slug": "chat--b", "name": "B", "project": "chat", "limits": [{**USD, "unit": "micros"}]}

    response = api("POST", "policies", body)

    assert response["Sluicegate-Warning"] == (
        "limits.usd.time_zone: This budget counts in the time zone UTC, and the statements of its project in "
        "Europe/Berlin."
    )
    assert Policy.objects.get().limits.get().time_zone == "UTC"


def test_usual_limits_have_no_warning(api, store):
    policy = PolicyFactory(slug="b")
    for unit in ("requests", "tokens", "input_tokens", "output_tokens", "micros"):
        LimitFactory(policy=policy, name=unit, unit=unit)

    assert "Sluicegate-Warning" not in api("GET", "policies/b").headers
