"""Labels of tokens over REST, from the request that sets them to the counters and the usage of a label."""

import json

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.projects.models import Token
from controlplane.traffic.usage.drain import drain
from enforcement import Limiter
from enforcement.model.documents import parse_token
from enforcement.model.tokens import digest

pytestmark = pytest.mark.django_db(transaction=True)

SHARED = {
    "name": "team",
    "algorithm": "fixed_window",
    "quota": 3,
    "window_seconds": 86_400,
    "partition_by": ["label.team"],
}


@pytest.fixture
def shop(api, store):
    """A project with a limit for each team."""
    assert api("POST", "policies", {"slug": "teams", "name": "T", "limits": [SHARED]}).status_code == 201
    assert api("POST", "projects", {"slug": "shop", "name": "Shop", "policy": "teams"}).status_code == 201


def issue(api, **fields):
    """Create a token and return the body of the response."""
    response = api("POST", "projects/shop/tokens", {"name": "t", **fields})
    assert response.status_code == 201, response.content
    return response.json()


def test_labels_are_saved_shown_audited_and_published(shop, api, client_of_store):
    """A document without labels is as before, so that older enforcers can read it."""
    plain, red = issue(api), issue(api, labels={"team": "red", "a__b.c": "Müller & Söhne"})
    documents = [json.loads(client_of_store.get(f"sg:{{doc}}:token:{digest(it['secret'])}")) for it in (plain, red)]

    assert (plain["labels"], red["labels"]) == ({}, {"team": "red", "a__b.c": "Müller & Söhne"})
    assert "labels" not in documents[0]
    assert dict(parse_token(json.dumps(documents[1])).labels) == red["labels"]
    assert AuditEntry.objects.get(object_id=red["id"]).after["labels"] == red["labels"]


def test_a_change_replaces_all_labels_and_leaves_what_it_does_not_name(shop, api):
    """As it does with every field."""
    path = f"tokens/{issue(api, labels={'team': 'red', 'owner': 'ann'})['id']}"

    assert api("PATCH", path, {"name": "n"}).json()["labels"] == {"team": "red", "owner": "ann"}
    assert api("PATCH", path, {"labels": {"team": "blue"}}).json()["labels"] == {"team": "blue"}
    entry = AuditEntry.objects.filter(action="token.update").first()
    assert (entry.before["labels"], entry.after["labels"]) == ({"team": "red", "owner": "ann"}, {"team": "blue"})
    assert api("PATCH", path, {"labels": {}}).json()["labels"] == {}


def test_a_token_in_place_of_another_has_its_labels(shop, api):
    """So its budget is that of its team from its first request."""
    old = issue(api, labels={"team": "red"})

    assert api("POST", f"tokens/{old['id']}/rotate", {}).json()["labels"] == {"team": "red"}


@pytest.mark.parametrize(
    ("labels", "rule"),
    [
        (None, "null"),
        ([], "Must be an object of names and strings"),
        ("team=red", "Must be an object of names and strings"),
        ({f"n{i}": "v" for i in range(17)}, "Must be at most 16, got 17"),
        ({"Team": "red"}, "A name must be 1 to 58 of a-z 0-9 . _ - and begin with a letter"),
        ({"": "red"}, "A name must be 1 to 58"),
        ({"a" * 59: "red"}, "A name must be 1 to 58"),
        ({"team": ""}, "The value of team must have 1 to 128 characters, got 0"),
        ({"team": "x" * 129}, "The value of team must have 1 to 128 characters, got 129"),
        ({"team": " red"}, "or a space at either end"),
        ({"team": "a\nb"}, "The value of team must not have control characters"),
        ({"team": "a\u202eb"}, "The value of team must have printable characters only, but contains"),
        ({"team": 7}, "The value of team must be a string, got 7"),
        ({"team": None}, "The value of team must be a string"),
        ({"team": ["red"]}, "The value of team must be a string"),
    ],
)
def test_what_is_no_label_is_refused_with_its_rule(shop, api, labels, rule):
    """Nothing is saved."""
    response = api("POST", "projects/shop/tokens", {"name": "t", "labels": labels})

    assert response.status_code == 400
    assert [error["pointer"] for error in response.json()["errors"]] == ["#/labels"]
    assert rule in response.json()["errors"][0]["detail"]
    assert not Token.objects.exists()


def test_tokens_are_listed_by_their_labels(shop, api):
    """Several parameters must all fit. A name may have two underscores or a dot."""
    red, _ = issue(api, labels={"team": "red", "a__b.c": "1"}), issue(api, labels={"team": "blue", "a__b.c": "1"})

    def found(query):
        return {row["id"] for row in api("GET", f"projects/shop/tokens?{query}").json()["results"]}

    assert found("label.team=red") == {red["id"]}
    assert found("label.team=red&label.a__b.c=1") == {red["id"]}
    assert len(found("label.a__b.c=1")) == 2
    assert found("label.team=re") == found("label.team=red&label.a__b.c=2") == found("label.owner=ann") == set()


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("label.team=", "label.team"),
        ("label.Team=red", "label.Team"),
        ("label.=red", "label."),
        ("label.team=a&label.team=b", "label.team"),
        ("labels=red", "labels"),
        ("label=red", "label"),
    ],
)
@pytest.mark.parametrize("path", ["projects/shop/tokens", "usage"])
def test_a_filter_that_names_no_label_is_refused(shop, api, path, query, parameter):
    """An empty value would otherwise list every token."""
    response = api("GET", f"{path}?{query}")

    assert response.status_code == 400
    assert [error["parameter"] for error in response.json()["errors"]] == [parameter]


def test_usage_is_filtered_by_the_present_labels_of_its_tokens(shop, api, store):
    """Of the tokens that the key may see."""
    red, blue = issue(api, labels={"team": "red"}), issue(api, labels={"team": "blue"})
    with Limiter(store.url, timeout=1.0) as limiter:
        assert [limiter.check(it["secret"]).allowed for it in (red, red, blue)] == [True] * 3
    drain(timezone.now())

    rows = api("GET", "usage?label.team=red").json()["results"]
    limits = api("GET", "usage?label.team=red&limit=teams/team").json()["results"]
    assert [(row["token"], row["allowed"]) for row in rows + limits] == [(red["id"], 2)] * 2
    assert api("GET", "usage?label.team=green").json()["results"] == []


def test_counters_of_a_token_have_the_numbers_of_its_label(shop, api, store):
    """Those of its project have none, and a reset for the token is one of its whole team."""
    one, two = issue(api, labels={"team": "red"}), issue(api, labels={"team": "red"})
    bare = issue(api)
    with Limiter(store.url, timeout=1.0) as limiter:
        assert [limiter.check(it["secret"]).remaining for it in (one, two)] == [2, 1]

    (counter,) = api("GET", f"counters?token={one['id']}").json()["results"]
    (whole,) = api("GET", "counters?project=shop").json()["results"]
    assert (counter["used"], counter["remaining"], counter["labels"]) == (2, 1, {"label.team": "red"})
    assert (whole["used"], whole["values"], whole["labels"]) == (None, None, {})
    assert api("GET", f"counters?token={bare['id']}").json()["results"] == []

    body = {"limit": "teams/team", "reason": "a test"}
    assert api("POST", "counters/reset?project=shop", body).json()["errors"][0]["code"] == "partitioned"
    assert api("POST", f"counters/reset?token={bare['id']}", body).json()["errors"][0]["code"] == "rule"
    assert api("POST", f"counters/reset?token={two['id']}", body).json() == {"reset": 1}
    assert api("GET", f"counters?token={one['id']}").json()["results"][0]["used"] == 0


@pytest.mark.parametrize("name", ["label.", "label.9", "label.-x"])
@pytest.mark.parametrize("field", ["partition_by", "match"])
def test_a_limit_that_names_a_label_which_no_token_can_have_is_refused(api, store, name, field):
    """It would never apply."""
    value = [name] if field == "partition_by" else {"attributes": {name: "x"}}
    response = api("POST", "policies", {"slug": "p", "name": "P", "limits": [{**SHARED, field: value}]})

    assert response.status_code == 400
    assert "A label is label. and a name" in response.content.decode()
