"""
Reservations over REST: exactly those of a killed process are lost, and each is settled once, by one operator.

One test kills a real process. The others have reservations of this process, whose life they end in the store.
"""

from functools import partial
from urllib.parse import urlsplit

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Project
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.reports import daily_reports, usage_render, usage_report
from controlplane.traffic.reservations.models import Reservation
from tests.controlplane.conftest import at_once
from tests.factories import ManagementKeyFactory, ProjectFactory

pytestmark = pytest.mark.django_db(transaction=True)

REASON = {"reason": "The proxy was killed."}
PROVIDER_SAYS = {"usage": {"input": 90, "output": 40}, **REASON}


def test_a_killed_process_leaves_exactly_its_reservations(api, killed, used_by_limit, reported):
    """Of four requests one was settled. The others keep their estimates, and are settled to what the provider says."""
    ids, prices = killed(3), prices_revision()
    report_names_the_lost(3)
    listed = api("GET", "reservations?project=chat&state=lost").json()

    assert ({row["id"] for row in listed["results"]}, listed["truncated"], listed["next"]) == (set(ids), False, None)
    row = listed["results"][0]
    assert (row["project"], row["model"], row["instance"], row["state"]) == ("chat", "gpt-x", "proxy-1", "lost")
    assert row["estimate"] == {"input": 100, "output": 500, "price_revision": prices}
    assert {one["limit"]: one["permits"] for one in row["amounts"]} == {
        "budget/tpm": 600,
        "budget/usd": 2_100,
        "budget/slots": 1,
        "budget/rpm": 1,
    }
    assert used_by_limit() == {"tpm": 130 + 1_800, "usd": 220 + 6_300, "slots": 3, "rpm": 4}

    settled = api("POST", f"reservations/{ids[0]}/settle", PROVIDER_SAYS)
    charged = api("POST", f"reservations/{ids[1]}/settle", {"costs": {"tokens": 700, "micros": 3_000}, **REASON})
    released = api("POST", f"reservations/{ids[2]}/release", REASON)

    assert [answer.status_code for answer in (settled, charged, released)] == [200, 200, 200]
    assert [answer.json()["state"] for answer in (settled, charged, released)] == ["settled", "settled", "released"]
    assert settled.json()["changes"] == [
        {"limit": "budget/tpm", "unit": "tokens", "permits": 130 - 600},
        {"limit": "budget/usd", "unit": "micros", "permits": 90 + 160 - 2_100},
    ]
    assert used_by_limit() == {"tpm": 130 + 130 + 700, "usd": 220 + 250 + 3_000, "slots": 0, "rpm": 4}
    counted = {name: cost for name, cost in used_by_limit().items() if name != "slots"}
    assert {name: cost for name, cost in reported().items() if name in counted} == counted
    assert api("GET", "reservations?project=chat").json()["results"] == []
    assert {row["id"] for row in api("GET", "reservations?state=settled").json()["results"]} == set(ids[:2])
    assert [row["id"] for row in api("GET", "reservations?state=released").json()["results"]] == [ids[2]]
    metered_usage_says_how_each_was_settled(api, prices)


def prices_revision() -> int:
    """Return the revision that the prices were published as."""
    return Revision.objects.filter(changes__prices=True).latest("number").number


def report_names_the_lost(number: int) -> None:
    """The report of the day has them, and the model with the one request that was settled."""
    today = timezone.now().date()
    built = usage_report.build(today, timezone.now())
    text, html = usage_render.as_text(built), usage_render.as_html(built)

    assert f"{number} reservations lost by their process, {number} of them not settled yet" in text
    assert [line.split() for line in text.splitlines() if line.startswith("gpt-x")] == [
        ["gpt-x", "1", "100", "30", "0.00022", "USD"]
    ]
    assert f"{number} reservations lost their process" in html
    assert '<th scope="row">gpt-x</th>' in html
    summary = daily_reports.write(today, timezone.now()).summary
    assert summary["reservations"] == {"lost": number, "unsettled": number}


def metered_usage_says_how_each_was_settled(api, prices: int) -> None:
    rows = api("GET", "usage/metered?project=chat&step=hour").json()["results"]
    names = ("model", "requests", "input", "output", "micros", "estimated_input", "price_revision")
    assert {row["settled_as"]: [row[name] for name in names] for row in rows} == {
        "exact": ["gpt-x", 3, 190, 70, 220 + 250 + 3_000, 200, prices],
        "nothing": ["gpt-x", 1, 0, 0, 0, 0, prices],
    }
    (model,) = api("GET", "usage/models?project=chat").json()["results"]
    assert (model["model"], model["requests"], model["input"], model["output"], model["micros"]) == (
        *("gpt-x", 4, 190, 70, 3_470),
    )
    assert model["settled_as"] == {"exact": 3, "nothing": 1}


def test_the_audit_says_who_settled_what_and_why(api, reserved):
    api("POST", f"reservations/{reserved}/settle", PROVIDER_SAYS)

    (entry,) = AuditEntry.objects.filter(object_type="reservation")
    assert (entry.actor, entry.action, entry.object_id, entry.reason) == (
        *("ann", "reservation.settle", reserved, "The proxy was killed."),
    )
    assert (entry.before["state"], entry.after["order"]["costs"]["tokens"]) == ("open", 130)


def test_of_two_operators_at_once_one_wins(web, key, reserved, used_by_limit):
    """The other is told so, and the counters have the one settlement."""
    before = used_by_limit()
    ways = [("settle", {"costs": {"tokens": 100}, **REASON}), ("release", REASON)] * 2

    answers = at_once(
        [lambda way=way: web("POST", f"reservations/{reserved}/{way[0]}", way[1], key=key) for way in ways]
    )

    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409], answers
    refused = [answer.body for answer in answers if answer.status_code == 409]
    assert {body["code"] for body in refused} == {"already_settled"}
    won = Reservation.objects.get(pk=reserved)
    assert used_by_limit()["tpm"] == before["tpm"] - 600 + (100 if won.state == "settled" else 0)
    assert AuditEntry.objects.filter(object_type="reservation").count() == 1


def test_a_later_operator_is_told_that_it_is_settled(api, reserved):
    api("POST", f"reservations/{reserved}/release", REASON)

    answer = api("POST", f"reservations/{reserved}/settle", PROVIDER_SAYS)

    assert (answer.status_code, answer.json()["code"]) == (409, "already_settled")
    assert answer.json()["detail"] == "The reservation is settled already. Nothing was changed."


def test_a_settlement_is_repeated_with_its_last_state(api, reserved, used_by_limit):
    """The counters follow the commit, and the kept response is the one from after that."""
    settle = partial(api, "POST", f"reservations/{reserved}/settle", PROVIDER_SAYS, idempotency_key="a")
    first = settle()
    charged = used_by_limit()

    again = settle()

    assert (first.status_code, first.json()["state"]) == (200, "settled")
    assert (again.json(), again["Idempotency-Replayed"]) == (first.json(), "true")
    assert used_by_limit() == charged


def test_a_settlement_that_came_too_late_is_no_success_with_a_key(api, reserved, client_of_store, monkeypatch):
    """Its process has settled it at the same moment, which only the call after the commit finds out."""
    monkeypatch.setattr("controlplane.traffic.reservations.actions.settle_reservation", lambda *args, **options: None)

    for _ in range(2):
        late = api("POST", f"reservations/{reserved}/settle", PROVIDER_SAYS, idempotency_key="a")
        assert (late.status_code, late.json()["code"]) == (409, "already_settled")


def test_a_limited_key_reaches_only_its_project(api, call, reserved):
    """Ids of others are unknown to it, however they are made up."""
    other = ManagementKeyFactory(all_projects=False, projects=[ProjectFactory(slug="other")])
    tag, _, ident = reserved.partition(".")
    forged = [reserved, f"global.{ident}", f"{Project.objects.get(slug='other').pk}.{ident}", f"{tag}.{'0' * 32}"]

    for one in forged:
        assert call("GET", f"reservations/{one}", key=other).status_code == 404
        assert call("POST", f"reservations/{one}/settle", PROVIDER_SAYS, key=other).status_code == 404
        assert call("POST", f"reservations/{one}/release", REASON, key=other).status_code == 404
    assert call("GET", "reservations", key=other).json()["results"] == []
    assert call("GET", "reservations?state=open", key=other).json()["results"] == []
    assert call("GET", "reservations?project=chat", key=other).status_code == 400
    assert api("GET", f"reservations/{reserved}").json()["state"] == "open"

    own = ManagementKeyFactory(all_projects=False, projects=[Project.objects.get(slug="chat")])
    assert call("GET", f"reservations/{reserved}", key=own).json()["instance"] is None
    assert call("POST", f"reservations/{reserved}/release", REASON, key=own).status_code == 200


@pytest.mark.parametrize("verb", ["settle", "release"])
def test_settling_needs_its_own_scope(call, reserved, verb):
    reader = ManagementKeyFactory(scopes=["reservations:read"])

    answer = call("POST", f"reservations/{reserved}/{verb}", REASON, key=reader)

    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert call("GET", f"reservations/{reserved}", key=reader).status_code == 200


BAD_SETTLEMENTS = (
    ({"usage": {"input": 1, "output": 1}}, "#/reason", "required"),
    (REASON, "#", "Exactly one of costs and usage"),
    ({**PROVIDER_SAYS, "costs": {"tokens": 1}}, "#", "Exactly one of costs and usage"),
    ({**REASON, "costs": {}}, "#/costs", "empty"),
    ({**REASON, "costs": {"tokens": -1}}, "#/costs/tokens", "greater than or equal to 0"),
    ({**REASON, "costs": {"tokens": 1.5}}, "#/costs/tokens", "integer"),
    ({**REASON, "costs": {"tokens": True}}, "#/costs/tokens", "integer"),
    ({**REASON, "costs": {"images": 1}}, "#/costs", "No limit of this reservation counts 'images'"),
    ({**REASON, "usage": {"input": 1}}, "#/usage/output", "required"),
    ({**REASON, "usage": {"input": 1, "output": 1, "reasoning": 1}}, "#/usage/reasoning", "Unknown field"),
    ({**REASON, "usage": {"input": 2**53, "output": 1}}, "#/usage/input", "less than or equal to"),
)


def test_bad_input_changes_nothing(api, reserved, used_by_limit):
    """Each error names the field and the rule."""
    before = used_by_limit()

    for body, pointer, text in BAD_SETTLEMENTS:
        answer = api("POST", f"reservations/{reserved}/settle", body)
        assert answer.status_code == 400, body
        (error,) = answer.json()["errors"]
        assert (error["pointer"], text in error["detail"]) == (pointer, True), error
    assert used_by_limit() == before
    assert api("GET", f"reservations/{reserved}").json()["state"] == "open"


def test_a_wrong_query_is_refused(api, secret):
    queries = ("state=open,lost", "older_than=-1", "older_than=x", "project=none", "age=1", "cursor=1")
    assert {query: api("GET", f"reservations?{query}").status_code for query in queries} == dict.fromkeys(queries, 400)


def test_pages_and_filters_of_what_is_lost(api, lost, secret):
    ids = lost(3)
    first = api("GET", "reservations?page_size=2").json()
    second = api("GET", f"reservations?{urlsplit(first['next']).query}").json()

    assert [row["id"] for row in first["results"] + second["results"]] == sorted(
        ids, key=lambda pk: (Reservation.objects.get(pk=pk).at, pk)
    )
    assert second["next"] is None
    assert api("GET", "reservations?older_than=3600").json()["results"] == []
    assert api("GET", "reservations?token=tok_none").json()["results"] == []
    assert api("GET", "reservations?state=open").json()["results"] == []


def test_without_the_store_nothing_changes(api, lost, store, client_of_store):
    (pk,) = lost(1)
    store.kill()
    try:
        listed = api("GET", "reservations")
        settled = api("POST", f"reservations/{pk}/release", REASON)
        kept = api("GET", "reservations?state=settled")
    finally:
        store.start()

    assert (listed.status_code, settled.status_code, kept.status_code) == (503, 503, 200)
    assert settled.json()["code"] == "store_unavailable"
    assert Reservation.objects.get(pk=pk).state == "lost"
    assert not AuditEntry.objects.filter(object_type="reservation").exists()


def test_what_an_operator_settles_its_process_does_not_count_again(api, proxy, used_by_limit, reported):
    """A stuck request is settled by hand. When its client leaves, neither counters nor usage change."""
    running = proxy(1, life=60.0)
    (row,) = api("GET", "reservations?state=open").json()["results"]
    assert api("POST", f"reservations/{row['id']}/settle", PROVIDER_SAYS).status_code == 200
    running.leave()

    assert used_by_limit() == {"tpm": 260, "usd": 470, "slots": 0, "rpm": 2}
    assert {name: reported()[name] for name in ("tpm", "usd", "rpm")} == {"tpm": 260, "usd": 470, "rpm": 2}
    rows = api("GET", "usage/metered").json()["results"]
    assert sum(row["requests"] for row in rows if row["settled_as"] == "exact") == 2


def test_the_totals_of_models_are_one_object_without_pages(api, store, openapi):
    """Parameters of pages are refused, because a client would take one page for all."""
    answer = openapi["paths"]["/api/v1/usage/models"]["get"]["responses"]["200"]["content"]["application/json"]
    name = answer["schema"]["$ref"].rpartition("/")[2]

    assert set(openapi["components"]["schemas"][name]["required"]) == set(api("GET", "usage/models").json())
    for query in ("page_size=5", "cursor=x", "settled_as=exactly"):
        assert api("GET", f"usage/models?{query}").status_code == 400, query
