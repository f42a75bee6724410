"""Many objects by one request: all of them or none, with one publication."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.publishing.models import Revision
from controlplane.web.restkit.idempotency.models import KeptAnswer
from tests.factories import LimitFactory, ManagementKeyFactory, OverrideFactory, PolicyFactory, ProjectFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"name": "per-minute", "algorithm": "fixed_window", "quota": 5, "window_seconds": 60}


def tokens(count: int, **fields) -> dict:
    return {"items": [{"project": "chat", "name": f"t{number}", **fields} for number in range(count)]}


def test_tokens_are_created_together(api, store, chat, token_document):
    """One revision has all of them, and each has its secret, once."""
    response = api("POST", "tokens/batch", tokens(20))
    results = response.json()["results"]

    assert (response.status_code, response["Sluicegate-Revision"], Revision.objects.count()) == (201, "1", 1)
    assert [one["name"] for one in results] == [f"t{number}" for number in range(20)]
    assert len({one["secret"] for one in results}) == 20
    assert AuditEntry.objects.filter(action="token.create", actor="ann").count() == 20
    assert all(token_document(token.digest) for token in Token.objects.all())


def test_a_token_of_a_batch_is_like_any_other(api, chat):
    """Field by field, also with the policy of new tokens, which null replaces by none."""
    Project.objects.update(token_policy=PolicyFactory(slug="free"))
    items = [{"name": "a"}, {"name": "b", "policy": None, "labels": {"team": "red"}}]

    single = [api("POST", "projects/chat/tokens", item).json() for item in items]
    batch = api("POST", "tokens/batch", {"items": [{**item, "project": "chat"} for item in items]}).json()["results"]

    own = ("id", "secret", "prefix", "created_at")
    assert [{name: one[name] for name in one if name not in own} for one in batch] == [
        {name: one[name] for name in one if name not in own} for one in single
    ]


def test_the_number_of_items_does_not_decide_that_of_statements(api, store, chat):
    """Every item names rows of its own. The rows stay locked for so long as the statements take."""
    limits, counts = [LIMIT, {**LIMIT, "name": "per-hour", "window_seconds": 3600}], {}
    override = {"quota": 7, "reason": "x"}
    for first, size in ((0, 10), (10, 40)):
        numbers = range(first, first + size)
        bodies = {
            "policies": [{"slug": f"p{n}", "name": "P", "limits": limits} for n in numbers],
            "projects": [{"slug": f"q{n}", "name": "Q", "policy": f"p{n}"} for n in numbers],
            "tokens": [{"project": f"q{n}", "name": f"t{n}", "policy": f"p{n - n % 2}"} for n in numbers],
        }
        for resource, items in bodies.items():
            counts[resource, size] = statements(api, f"{resource}/batch", items)
        ids = Token.objects.filter(name__in=[f"t{n}" for n in numbers]).values_list("pk", flat=True).order_by("pk")
        of_projects = [{"limit": f"p{n - n % 2}/per-hour", "project": f"q{n}", **override} for n in numbers]
        of_tokens = [{"limit": f"p{n}/per-minute", "token": pk, **override} for n, pk in zip(numbers, ids, strict=True)]
        counts["overrides", size] = statements(api, "overrides/batch", [*of_projects, *of_tokens])

    grown = {resource: counts[resource, 40] - counts[resource, 10] for resource, size in counts if size == 10}
    # Databases bound the values of one statement, so a few more are needed for more rows.
    assert all(more <= 12 for more in grown.values()), counts
    assert Override.objects.count() == 100


def statements(api, path: str, items: list[dict]) -> int:
    """Return how many statements a batch takes."""
    with CaptureQueriesContext(connection) as queries:
        response = api("POST", path, {"items": items})
    assert response.status_code == 201, response.content
    return len(queries)


@pytest.mark.proof
@pytest.mark.parametrize("holder", ["token", "project"])
def test_each_override_of_a_batch_has_a_limit_of_its_own(api, store, chat, holder):
    """No two items share what is looked up, and still there is one publication."""
    count = scale(30, 1000)
    items = [{"slug": f"p{n}", "name": "P", "limits": [LIMIT]} for n in range(count)]
    assert api("POST", "policies/batch", {"items": items}).status_code == 201
    items = [{"slug": f"q{n}", "name": "Q", "policy": f"p{n}"} for n in range(count)]
    assert api("POST", "projects/batch", {"items": items}).status_code == 201
    items = [{"project": f"q{n}", "name": "t"} for n in range(count)]
    ids = [one["id"] for one in api("POST", "tokens/batch", {"items": items}).json()["results"]]
    names = ids if holder == "token" else [f"q{n}" for n in range(count)]
    items = [{"limit": f"p{n}/per-minute", holder: names[n], "quota": 7, "reason": "x"} for n in range(count)]
    revisions = Revision.objects.count()

    response = api("POST", "overrides/batch", {"items": items})

    assert (response.status_code, len(response.json()["results"])) == (201, count)
    assert Revision.objects.count() == revisions + 1


def test_a_wrong_item_is_named_and_nothing_is_written(api, store, chat):
    """All wrong ones are told at once, each by its place and field."""
    body = tokens(4)
    body["items"][1] = {"project": "none", "name": "x"}
    body["items"][3] = {"project": "chat", "name": "", "expires_at": "2001-01-01T00:00:00Z", "nam": 1}

    response = api("POST", "tokens/batch", body)

    assert response.status_code == 400
    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [
        ("#/items/1/project", "does_not_exist"),
        ("#/items/3/name", "blank"),
        ("#/items/3/nam", "unknown_field"),
    ]
    assert not Token.objects.exists()
    assert not AuditEntry.objects.exists()


def test_a_rule_of_the_model_is_told_for_its_item(api, chat):
    """As for one token."""
    body = tokens(2)
    body["items"][1]["expires_at"] = "2001-01-01T00:00:00Z"

    (error,) = api("POST", "tokens/batch", body).json()["errors"]

    assert (error["pointer"], error["code"]) == ("#/items/1/expires_at", "past")


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 400, "#/items"),
        ({"items": []}, 400, "#/items"),
        ({"items": {}}, 400, "#/items"),
        ({"items": [1]}, 400, "#/items/0"),
        ([], 400, "#"),
        ({"items": [], "more": 1}, 400, "#/items"),
    ],
)
def test_a_body_of_another_form_is_refused(api, body, status, pointer):
    """The error says where."""
    response = api("POST", "tokens/batch", body)

    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (status, pointer)


def test_more_than_a_thousand_are_refused_at_once(api, chat):
    """Before any of them is looked at."""
    response = api("POST", "tokens/batch", {"items": [1] * 1001})

    assert (response.status_code, response.json()["code"]) == (413, "too_many_items")


def test_a_repetition_shows_no_secret(api, chat):
    """As for one token. The tokens are the same."""
    first, again = (api("POST", "tokens/batch", tokens(3), idempotency_key="a") for _ in range(2))

    assert again["Idempotency-Replayed"] == "true"
    assert again.json()["results"] == [{**one, "secret": None} for one in first.json()["results"]]
    assert Token.objects.count() == 3
    assert first.json()["results"][0]["secret"] not in KeptAnswer.objects.get().body


def test_a_batch_can_be_tried(api, chat):
    """The response counts what it would create."""
    found = api("POST", "tokens/batch?dry_run=true", tokens(3)).json()

    assert (found["status"], found["changed"], found["result"]["results"][0]["secret"]) == (201, 3, None)
    assert not Token.objects.exists()


def test_projects_are_created_together(api, store):
    """With their policies, by one publication."""
    PolicyFactory(slug="free")
    items = [{"slug": f"p{number}", "name": "P", "policy": "free"} for number in range(5)]

    response = api("POST", "projects/batch", {"items": items})

    assert [one["policy"] for one in response.json()["results"]] == ["free"] * 5
    assert (Project.objects.count(), Revision.objects.count()) == (5, 1)
    assert AuditEntry.objects.filter(action="project.create").count() == 5


@pytest.mark.parametrize("resource", ["projects", "policies"])
def test_a_slug_is_taken_once(api, resource):
    """By an object that is there, or by an earlier item."""
    more = {"limits": []} if resource == "policies" else {}
    api("POST", resource, {"slug": "there", "name": "There", **more})
    slugs = ("new", "there", "twin", "twin")

    taken = api("POST", f"{resource}/batch", {"items": [{"slug": s, "name": "X", **more} for s in slugs[:2]]}).json()
    twins = api("POST", f"{resource}/batch", {"items": [{"slug": s, "name": "X", **more} for s in slugs[2:]]}).json()

    assert [(one["pointer"], one["code"]) for one in taken["errors"]] == [("#/items/1/slug", "unique")]
    assert [(one["pointer"], one["code"]) for one in twins["errors"]] == [("#/items/1/slug", "unique")]


def test_policies_are_created_together(api, store):
    """With their limits. A limit that enforcers could not enforce is named."""
    items = [{"slug": f"p{number}", "name": "P", "limits": [LIMIT]} for number in range(3)]

    response = api("POST", "policies/batch", {"items": items})
    items[2] = {"slug": "p9", "name": "P", "limits": [LIMIT, LIMIT]}
    twice = api("POST", "policies/batch", {"items": items[2:]})

    assert [one["limits"][0]["quota"] for one in response.json()["results"]] == [5] * 3
    assert (Policy.objects.count(), Revision.objects.count()) == (3, 1)
    assert [error["pointer"] for error in twice.json()["errors"]] == ["#/items/0/limits"]
    entries = dict(AuditEntry.objects.filter(action="policy.create").values_list("object_id", "after"))
    assert entries == {policy.pk: policy.as_record() for policy in Policy.objects.all()}


def test_overrides_are_created_together(api, store, chat):
    """Two of one limit and holder are one too many."""
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute")
    other = ProjectFactory(slug="other", policy=limit.policy)
    Project.objects.filter(pk=chat.pk).update(policy=limit.policy)
    items = [{"limit": "free/per-minute", "project": p, "quota": 7, "reason": "x"} for p in ("chat", other.slug)]

    twice = api("POST", "overrides/batch", {"items": [*items, items[0]]})
    response = api("POST", "overrides/batch", {"items": items})

    assert (twice.status_code, twice.json()["errors"][0]["pointer"]) == (400, "#/items/2/limit")
    assert (response.status_code, Override.objects.count(), Revision.objects.count()) == (201, 2, 1)


def test_each_wrong_override_is_named(api, store, chat):
    """By its own rule, and all of them at once. Those that end or that another item holds count too."""
    policy = PolicyFactory(slug="free")
    limits = [LimitFactory(policy=policy, name=name) for name in ("a", "b", "c", "d", "e")]
    Project.objects.filter(pk=chat.pk).update(policy=policy)
    unattached = LimitFactory(policy=PolicyFactory(slug="other"), name="a")
    OverrideFactory(limit=limits[0], token=None, project=chat)
    OverrideFactory(limit=limits[4], token=None, project=chat)
    Override.objects.filter(limit=limits[4]).update(ends_at="2001-01-01T00:00:00Z")
    good = {"project": "chat", "quota": 7, "reason": "x"}
    items = [
        {**good, "limit": "free/b"},
        {**good, "limit": "free/a"},
        {**good, "limit": str(unattached)},
        {**good, "limit": "free/b"},
        {**good, "limit": "free/c", "ends_at": "2001-01-01T00:00:00Z"},
        {**good, "limit": "free/c", "burst": 9},
        {"limit": "free/d", "quota": 7, "reason": "x"},
        {**good, "limit": "free/e"},
    ]

    response = api("POST", "overrides/batch", {"items": items})

    assert [(error["pointer"], error["code"]) for error in response.json()["errors"]] == [
        ("#/items/1/limit", "unique"),
        ("#/items/2/limit", "does_not_apply"),
        ("#/items/3/limit", "unique"),
        ("#/items/4/ends_at", "past"),
        ("#/items/5/burst", "rule"),
        ("#/items/6/token", "one_of_two"),
    ]
    assert Override.objects.count() == 2
    assert api("POST", "overrides/batch", {"items": [items[0], items[7]]}).status_code == 201


def test_a_batch_gives_nobody_too_many_overrides(api, store, chat, monkeypatch):
    """Those of earlier requests count, and those of other items."""
    monkeypatch.setattr("controlplane.objects.overrides.models.MAX_OVERRIDES", 3)
    policy = PolicyFactory(slug="free")
    OverrideFactory(limit=LimitFactory(policy=policy, name="l"), token=None, project=chat)
    Project.objects.filter(pk=chat.pk).update(policy=policy)
    for number in range(3):
        LimitFactory(policy=policy, name=f"l{number}")
    items = [{"limit": f"free/l{n}", "project": "chat", "quota": 7, "reason": "x"} for n in range(3)]

    refused = api("POST", "overrides/batch", {"items": items}).json()
    done = api("POST", "overrides/batch", {"items": items[:2]})

    assert [error["pointer"] for error in refused["errors"]] == ["#/items/0", "#/items/1", "#/items/2"]
    assert (done.status_code, Override.objects.count()) == (201, 3)


def test_a_limited_key_creates_in_its_projects_only(call, chat):
    """Another one's is named as one that is not there."""
    ProjectFactory(slug="other")
    key = ManagementKeyFactory(projects=[chat])
    body = {"items": [{"project": "chat", "name": "a"}, {"project": "other", "name": "b"}]}

    response = call("POST", "tokens/batch", body, key=key)

    assert [error["pointer"] for error in response.json()["errors"]] == ["#/items/1/project"]
    assert call("POST", "tokens/batch", tokens(1), key=key).status_code == 201
    assert call("POST", "projects/batch", {"items": [{"slug": "x", "name": "X"}]}, key=key).status_code == 403


def test_an_object_called_batch_keeps_its_address(api):
    """Only POST belongs to the batch."""
    PolicyFactory(slug="batch", name="Old")

    assert api("GET", "policies/batch").json()["name"] == "Old"
    assert api("PATCH", "policies/batch", {"name": "New"}).json()["name"] == "New"
    assert api("GET", "tokens/batch").status_code == 405
    assert api("DELETE", "policies/batch").status_code == 204
    assert api("GET", "policies/batch").status_code == 404
