"""What REST says of limits that may be a mistake, and are no error."""

import pytest

from controlplane.objects.policies.models import Policy
from controlplane.operations.jobs import run
from controlplane.web.restkit.batches import jobs as batch_jobs
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
    body = {
        "slug": "chat--b",
        "name": "B",
        "project": "chat",
        "limits": [{**USD, "unit": "micros", "quota": 5 * 10**8}],
    }

    response = api("POST", "policies", body)

    assert response["Sluicegate-Warning"] == (
        "limits.usd.time_zone: This budget counts in the time zone UTC, and the statements of its project in "
        "Europe/Berlin."
    )
    assert Policy.objects.get().limits.get().time_zone == "UTC"


def test_whole_units_of_money_in_the_place_of_millionths_are_told(api, store):
    """A budget of 0.0005 USD denies nearly everything. One of nothing denies all, as whoever writes 0 knows."""
    limits = [{**USD, "name": f"n{quota}", "unit": "micros", "quota": quota} for quota in (500, 0)]
    response = api("POST", "policies", {"slug": "b", "name": "B", "limits": limits})

    said = "500 micros are 0.0005 USD. For 500.00 USD, write 500000000."
    assert (response.status_code, response["Sluicegate-Warning"]) == (201, f"limits.n500.quota: {said}")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("burst", {"algorithm": "token_bucket", "window_seconds": 60, "calendar": None}),
        ("rollover", {"algorithm": "fixed_window", "calendar": "month"}),
    ],
)
def test_every_amount_of_a_limit_of_money_is_looked_at(api, store, name, own):
    limit = {"name": "usd", "unit": "micros", "quota": 5_000_000, name: 500, **own}
    response = api("POST", "policies", {"slug": "b", "name": "B", "limits": [limit]})

    assert response.status_code == 201, response.json()
    assert response["Sluicegate-Warning"].startswith(f"limits.usd.{name}: 500 micros are 0.0005 USD.")


def test_usual_limits_have_no_warning(api, store):
    policy = PolicyFactory(slug="b")
    for unit in ("requests", "tokens", "input_tokens", "output_tokens", "micros"):
        LimitFactory(policy=policy, name=unit, unit=unit, quota=100_000)

    assert "Sluicegate-Warning" not in api("GET", "policies/b").headers


def items(count: int) -> list[dict]:
    """Policies of a batch, of which each second one has a limit in dollars."""
    limits = [{**USD, "unit": unit} for unit in ("requests", "usd")]
    return [{"slug": f"p{place}", "name": "P", "limits": [limits[place % 2]]} for place in range(count)]


def test_a_batch_names_the_item_of_each_warning(api, store, django_assert_max_num_queries):
    """In the response and the header, and when it is only tried. All are found at once."""
    with django_assert_max_num_queries(60):
        tried = api("POST", "policies/batch?dry_run=true", {"items": items(20)})
    made = api("POST", "policies/batch", {"items": items(4)})

    assert [one["item"] for one in tried.json()["warnings"]] == list(range(1, 20, 2))
    assert tried.json()["result"]["warnings"] == tried.json()["warnings"]
    assert made.status_code == 201
    told = {"limit": "usd", "field": "unit", "message": SAID.removeprefix("limits.usd.unit: ")}
    assert made.json()["warnings"] == [{"item": 1, **told}, {"item": 3, **told}]
    assert made["Sluicegate-Warning"] == f"items.1.{SAID} items.3.{SAID}"
    sound = api("POST", "policies/batch", {"items": [{"slug": "c", "name": "C", "limits": []}]})
    assert (sound.json()["warnings"], "Sluicegate-Warning" in sound) == ([], False)


def test_the_job_of_a_batch_names_the_item_of_each_warning(api, store, monkeypatch):
    monkeypatch.setattr(batch_jobs, "MOST_ITEMS", 2)
    monkeypatch.setattr(run, "AT_ONCE", 2)
    monkeypatch.setattr(run, "SLICE_SECONDS", 0.0)

    response = api("POST", "policies/batch", {"items": items(5)})
    run.run_all(600.0, pause=lambda seconds: None)

    result = api("GET", response["Location"].removeprefix("/api/v1/")).json()["result"]
    assert result["created"] == 5
    assert [(one["item"], one["limit"]) for one in result["warnings"]] == [(1, "usd"), (3, "usd")]


@pytest.mark.parametrize("unit", ["usd", "dollars", "llm_tokens", "input_tokns", "megapixels"])
def test_five_wrong_units_get_advice(api, store, unit):
    """What was meant is named where that can be told, else the usual units."""
    meant = {"usd": "micros", "dollars": "micros", "llm_tokens": "tokens", "input_tokns": "input_tokens"}
    made = api("POST", "policies", {"slug": "b", "name": "B", "limits": [{**USD, "unit": unit}]})

    said = f"Did you mean {meant[unit]}" if unit in meant else "Usual units are requests"
    assert made["Sluicegate-Warning"].startswith(f"limits.usd.unit: Nothing has been charged in {unit} so far")
    assert said in made["Sluicegate-Warning"]
