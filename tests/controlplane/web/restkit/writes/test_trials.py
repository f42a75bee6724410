"""Changes with ``dry_run=true``: every rule is checked, the response says what would be, and nothing is written."""

import pytest
import redis
from django.apps import apps

from controlplane.changes.change.transaction import change
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.actions import issue_token
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs import run
from enforcement import Limiter
from tests.controlplane.objects.people.world import alerted
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    ModelPriceFactory,
    OverrideFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)

LIMIT = {"name": "per-minute", "quota": 5, "window_seconds": 60}
# A body for each operation that changes something, by the address with the names of its rows.
BODIES = {
    "POST projects": {"slug": "new", "name": "New"},
    "PUT projects/{slug}": {"name": "Talk"},
    "PATCH projects/{slug}": {"name": "Talk"},
    "DELETE projects/{slug}": None,
    "POST projects/{slug}/suspend": {},
    "POST projects/{slug}/resume": {},
    "POST projects/{slug}/tokens": {"name": "ci"},
    "PATCH tokens/{id}": {"name": "other"},
    "DELETE tokens/{id}": None,
    "POST tokens/{id}/revoke": {},
    "POST tokens/{id}/rotate": {},
    "POST tokens/{id}/suspend": {},
    "POST tokens/{id}/resume": {},
    "POST policies": {"slug": "new", "name": "New", "limits": [LIMIT]},
    "PUT policies/{slug}": {"name": "Gratis", "limits": []},
    "PATCH policies/{slug}": {"limits": [LIMIT]},
    "DELETE policies/{slug}": None,
    "POST projects/batch": {"items": [{"slug": "new", "name": "New"}]},
    "POST tokens/batch": {"items": [{"project": "chat", "name": "ci"}]},
    "POST policies/batch": {"items": [{"slug": "new", "name": "New", "limits": [LIMIT]}]},
    "POST overrides/batch": {"items": [{"limit": "free/per-day", "project": "chat", "quota": 7, "reason": "x"}]},
    "POST management-keys": {"name": "new", "scopes": ["tokens:read"], "all_projects": True},
    "PATCH management-keys/{id}": {"name": "renamed"},
    "POST management-keys/{id}/revoke": {},
    "POST management-keys/{id}/rotate": {},
    "PUT global": {"policy": "free"},
    "POST overrides": {"limit": "free/per-day", "project": "chat", "quota": 7, "reason": "x"},
    "PATCH overrides/{id}": {"quota": 8},
    "DELETE overrides/{id}": None,
    "POST memberships": {"user": "bob", "project": "chat", "role": "editor"},
    "PATCH memberships/{id}": {"role": "owner"},
    "DELETE memberships/{id}": None,
    "PUT prices": {"model": "m", "input": 1, "output": 2},
    "PATCH prices/{id}": {"input": 3},
    "DELETE prices/{id}": None,
    "POST suspensions": {"project": None, "name": "ip", "value": "192.0.2.1", "reason": "x"},
    "DELETE suspensions/{id}": None,
    "PUT break-glass": {"seconds": 60, "reason": "x"},
    "DELETE break-glass": None,
    "DELETE jobs/{id}": None,
    "POST counters/reset?token={token}": {"reason": "x"},
    "POST revisions/{number}/rollback": {"reason": "x"},
    "POST revisions/{number}/undo": {"reason": "x"},
    "POST reservations/{id}/settle": {"costs": {"requests": 2}, "reason": "x"},
    "POST reservations/{id}/release": {"reason": "x"},
    "POST alert-rules": {"name": "New", "project": "chat", "kind": "usage"},
    "PATCH alert-rules/{id}": {"name": "Other"},
    "DELETE alert-rules/{id}": None,
    "POST webhooks": {"name": "New", "project": "chat", "url": "https://alerts.example/"},
    "PATCH webhooks/{id}": {"name": "Other"},
    "POST webhooks/{id}/rotate": {},
    "POST webhooks/{id}/test": {},
    "DELETE webhooks/{id}": None,
    "POST deliveries/{id}/replay": {},
    "POST apply": {
        "files": [
            {
                "apiVersion": "sluicegate/v1",
                "project": {"slug": "chat", "name": "Chat"},
                "policies": [{"slug": "chat-new", "limits": [LIMIT]}],
            }
        ]
    },
}


@pytest.fixture
def free() -> Policy:
    return LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute", quota=10).policy


@pytest.fixture
def names(store, actor, free) -> dict[str, dict[str, str]]:
    """One row of each kind, published, and how addresses name it."""
    per_day = LimitFactory(policy=free, name="per-day", quota=100)
    free.limits.update(calendar="lifetime", window_seconds=None)  # so that no counter ends meanwhile
    with change(actor=actor) as tx:
        tx.created(free)
        project = ProjectFactory(slug="chat", policy=free)
        tx.created(project)
        token, secret = issue_token(tx, project=project, name="ci", policy=free)
    for row in (project, free):
        with change(actor=actor) as tx:
            before, row.name = row.as_record(), "Renamed"
            row.save()
            tx.updated(row, before)
    with Limiter(store.url, timeout=1.0) as limiter:
        reservation = limiter.reserve(secret, costs=5, life=3600).id
    UserFactory(username="bob")
    webhook, rule, _, delivery = alerted(project, "chat")
    return {
        "alert-rules": {"id": rule.pk},
        "webhooks": {"id": webhook.pk},
        "deliveries": {"id": delivery.pk},
        "projects": {"slug": "chat"},
        "policies": {"slug": "free"},
        "tokens": {"id": token.pk},
        "overrides": {"id": OverrideFactory(limit=per_day, token=token).pk},
        "memberships": {"id": MembershipFactory(project=project).pk},
        "prices": {"id": ModelPriceFactory().pk},
        "suspensions": {"id": Suspension.objects.create(token=TokenFactory(project=project), reason="x", by="x").pk},
        "jobs": {"id": run.start("test", "Count", created_by="ann", channel="api").pk},
        "management-keys": {"id": ManagementKeyFactory(scopes=["tokens:read"]).pk},
        "counters": {"token": token.pk},
        "revisions": {"number": "2"},
        "reservations": {"id": reservation},
    }


def everything() -> dict[str, list]:
    """Every row of every table, but for the last use of keys."""
    rows = {model._meta.label: list(model._default_manager.order_by("pk").values()) for model in apps.get_models()}
    for key in rows[ManagementKey._meta.label]:
        del key["last_used_at"]
    return rows


def in_store(store) -> dict[bytes, bytes]:
    """Every key of the store with its value."""
    with redis.Redis.from_url(store.url) as client:
        return {key: client.dump(key) for key in client.keys("*")}


def test_every_change_has_a_body_here(openapi):
    """An operation that is new is tried below, or this fails."""
    paths = openapi["paths"]
    changing = {
        f"{method.upper()} {path.removeprefix('/api/v1/')}"
        for path, methods in paths.items()
        for method, operation in methods.items()
        if "dry_run" in [parameter["name"] for parameter in operation.get("parameters", [])]
    }
    asking = {"POST explain", "POST preview"}
    written = {f"{method.upper()} {path.removeprefix('/api/v1/')}" for path, found in paths.items() for method in found}

    assert changing == {name.partition("?")[0] for name in BODIES}
    assert {name for name in written if not name.startswith("GET ")} - asking == changing


def test_no_dry_run_writes_anything(api, names, store, settings):
    """No row of any table, no revision, no counter of the store, and no kept response."""
    settings.REST_RATE = ""  # whose counters are in the store, too
    there, stored = everything(), in_store(store)

    for name, body in BODIES.items():
        method, path = name.split()
        path = path.format(**names[path.partition("/")[0].partition("?")[0]]) if "{" in path else path
        query = f"{path}{'&' if '?' in path else '?'}dry_run=true"
        response = api(method, query, body, idempotency_key="once")
        if name == "DELETE policies/{slug}":
            assert (response.status_code, response.json()["code"]) == (409, "in_use")
            continue
        assert (response.status_code, response.json()["dry_run"]) == (200, True), (name, response.content)
        assert not response.has_header("Sluicegate-Revision"), name
    assert everything() == there
    assert in_store(store) == stored


CONDITIONS = {"If-Match": '"stale"', "If-None-Match": "*", "If-Unmodified-Since": "Sat, 01 Jan 2050 00:00:00 GMT"}


def test_every_change_checks_a_condition_or_refuses_it(api, names, openapi):
    """What the document lists is checked. Nothing else is accepted, and nothing is changed."""
    refused = {}
    for name, body in BODIES.items():
        method, path = name.split()
        operation = openapi["paths"][f"/api/v1/{path.partition('?')[0]}"][method.lower()]
        listed = {parameter["name"] for parameter in operation["parameters"]}
        path = path.format(**names[path.partition("/")[0].partition("?")[0]]) if "{" in path else path
        path = f"{path}{'&' if '?' in path else '?'}dry_run=true"
        found = {
            header: (response.status_code, response.json()["code"])
            for header, value in CONDITIONS.items()
            if (response := api(method, path, body, **{header: value})).status_code != 200
        }
        assert found["If-Match"][0] == (412 if "If-Match" in listed else 400), name
        assert found["If-Unmodified-Since"] == (400, "header_not_supported"), name
        refused[name] = "If-None-Match" in found

    # A new object of this PUT is created only if it is not there, and that of the names is there.
    assert [name for name, one in refused.items() if not one] == ["PUT prices"]


def test_a_creation_says_what_would_be_created(api):
    """The status and the body that it would have, and each field of the audit."""
    found = api("POST", "projects?dry_run=true", {"slug": "chat", "name": "Chat"}).json()

    assert (found["status"], found["tokens"], found["changed"]) == (201, 0, 1)
    assert (found["result"]["slug"], found["result"]["version"]) == ("chat", 1)
    (diff,) = found["diff"]
    assert (diff["action"], diff["type"], diff["label"]) == ("project.create", "project", "chat")
    assert {"field": "slug", "before": None, "after": "chat"} in diff["changes"]


def test_a_change_says_which_fields_differ(api):
    """The tokens are those whose project it is, without the ended ones."""
    project = ProjectFactory(slug="chat", name="Chat")
    TokenFactory(project=project)
    TokenFactory(project=project, revoked=True)
    TokenFactory()

    found = api("PATCH", "projects/chat?dry_run=true", {"active": False}).json()

    assert found["diff"][0]["changes"] == [{"field": "active", "before": True, "after": False}]
    assert (found["result"]["active"], found["tokens"]) == (False, 1)


def test_a_change_of_nothing_says_so(api):
    """It is how a program finds out whether there is anything to do."""
    ProjectFactory(slug="chat", name="Chat")

    found = api("PATCH", "projects/chat?dry_run=true", {"name": "Chat"}).json()

    assert (found["status"], found["changed"], found["diff"], found["tokens"]) == (200, 0, [], 0)


def test_a_deletion_lists_what_goes_with_it(api):
    """The tokens are counted once, although each is deleted too."""
    token = TokenFactory(project=ProjectFactory(slug="chat"))

    found = api("DELETE", "projects/chat?dry_run=true").json()

    assert (found["status"], found["result"], found["tokens"]) == (204, None, 1)
    assert [(one["action"], one["id"]) for one in found["diff"]] == [
        ("project.delete", token.project_id),
        ("token.delete", token.pk),
    ]


def test_no_secret_is_shown_of_a_token_that_will_not_be(api):
    """Nobody keeps a secret that opens nothing."""
    ProjectFactory(slug="chat")

    result = api("POST", "projects/chat/tokens?dry_run=true", {"name": "ci"}).json()["result"]

    assert (result["name"], result["secret"]) == ("ci", None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "projects", {"slug": "Chat"}, 400),
        ("POST", "projects", {"slug": "chat", "name": "Twice"}, 400),
        ("PATCH", "projects/none", {"name": "x"}, 404),
        ("POST", "projects/chat/tokens", {"name": "ci", "policy": "none"}, 400),
    ],
)
def test_a_dry_run_is_refused_as_the_change_would_be(api, method, path, body, status):
    """By the same rules, in the same words."""
    ProjectFactory(slug="chat")

    tried, made = api(method, f"{path}?dry_run=true", body), api(method, path, body)

    volatile = ("request_id",)
    told = [{name: value for name, value in one.json().items() if name not in volatile} for one in (tried, made)]
    assert (tried.status_code, made.status_code) == (status, status)
    assert told[0] == told[1]


def test_the_conditions_hold_for_a_dry_run_too(api):
    """A program tries with the tag with which it will write."""
    ProjectFactory(slug="chat")

    response = api("PATCH", "projects/chat?dry_run=true", {"name": "x"}, if_match='"stale"')

    assert response.status_code == 412


def test_a_limited_key_sees_of_a_dry_run_what_it_may_see(call):
    """Its own objects, not the key of somebody else that the deletion would narrow."""
    project = ProjectFactory(slug="chat")
    ManagementKeyFactory(name="other", projects=[project])
    key = ManagementKeyFactory(scopes=["projects:write"], projects=[project, ProjectFactory()])

    found = call("DELETE", "projects/chat?dry_run=true", key=key).json()

    assert [one["type"] for one in found["diff"]] == ["project"]
    assert found["changed"] == 1


def test_a_key_without_the_audit_sees_no_other_key(call):
    """Also if it works for every project."""
    project = ProjectFactory(slug="chat")
    ManagementKeyFactory(name="other", projects=[project])

    found = call("DELETE", "projects/chat?dry_run=true", key=ManagementKeyFactory(scopes=["projects:write"])).json()

    assert [one["type"] for one in found["diff"]] == ["project"]


def test_another_policy_of_a_token_is_reviewed(api, free):
    """As in the admin, with a preview. Another name is not."""
    token = TokenFactory(name="ci")

    attached = api("PATCH", f"tokens/{token.pk}?dry_run=true", {"policy": "free"}).json()
    renamed = api("PATCH", f"tokens/{token.pk}?dry_run=true", {"name": "other"}).json()

    assert attached["headline"] == f"Token {token} gets the policy free"
    assert (attached["tokens"], attached["needs_reason"], attached["preview"]["would_deny"]) == (1, True, None)
    assert (renamed["tokens"], "headline" in renamed) == (1, False)


def test_a_new_policy_is_reviewed(api):
    """Nobody has it yet."""
    found = api("POST", "policies?dry_run=true", {"slug": "new", "name": "New", "limits": [LIMIT]}).json()

    assert (found["status"], found["result"]["slug"], found["tokens"]) == (201, "new", 0)
    assert [(one["limit"], one["effect"]) for one in found["changes"]] == [("per-minute", "new")]


def test_the_idempotency_key_of_a_change_holds_where_dry_runs_are(api, free):
    """A repetition of a change of a policy is not made again."""
    first = api("PATCH", "policies/free", {"name": "One"}, idempotency_key="a")
    api("PATCH", "policies/free", {"name": "Two"})
    again = api("PATCH", "policies/free", {"name": "One"}, idempotency_key="a")

    assert (again["Idempotency-Replayed"], again.json()) == ("true", first.json())
    assert Policy.objects.get().name == "Two"


@pytest.mark.parametrize("word", ["yes", "1", "True", ""])
def test_other_words_are_refused(api, word):
    """So that no change is made by mistake."""
    response = api("POST", f"projects?dry_run={word}", {"slug": "chat", "name": "Chat"})

    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (400, "dry_run")
    assert not Project.objects.exists()
