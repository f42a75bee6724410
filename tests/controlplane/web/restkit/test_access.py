"""
Who may do what: every address and method, for every kind of key.

The table is compared with the URL configuration, so that nothing new opens without a line that says to whom.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import transaction
from django.urls import URLPattern, URLResolver
from django.utils import timezone

from controlplane.objects.emergency.models import Suspension
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.keys.scopes import IMPLIED, SCOPES
from controlplane.operations.jobs import run
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.reservations.models import Reservation
from controlplane.web.site import api_urls
from tests.controlplane.objects.people.world import alerted
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    ModelPriceFactory,
    OverrideFactory,
    PolicyDraftFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db

NAMED = {"name": "New", "slug": "new"}
REASON = {"reason": "x"}
FORBIDDEN, MISSING = 403, 404


@dataclass(frozen=True)
class Rule:
    """
    What a route answers.

    Args:
        scope: The one scope that it asks for.
        right: Status for a key of every project with that scope.
        foreign: Status for a key with that scope that is limited to another project.
        own: Status for one that is limited to the very project.
    """

    scope: str
    right: int
    foreign: int
    own: int
    body: Any = None
    query: str = ""


def items(item: dict[str, Any]) -> dict[str, Any]:
    """The body of a batch with one item."""
    return {"items": [item]}


POLICY = {**NAMED, "limits": []}
OWN_POLICY = {**POLICY, "slug": "theirs--new", "project": "theirs"}
COSTS = {"costs": {"requests": 1}, **REASON}
OVERRIDE = {"limit": "theirs--used/per-minute", "project": "theirs", "quota": 1, **REASON}
VALUE = {"project": None, "name": "session", "value": "bad", **REASON}
MEMBER = {"user": "eve", "project": "theirs", "role": "viewer"}
KEY = {"name": "New", "scopes": ["keys:write"], "projects": ["theirs"]}
ALERT = {"name": "New", "project": "theirs", "kind": "usage"}
WEBHOOK = {"name": "New", "project": "theirs", "url": "https://alerts.example/"}
PRICE = {"model": "new", "input": 1, "output": 1}
RULES = {
    ("projects", "GET"): Rule("projects:read", 200, 200, 200),
    ("projects", "POST"): Rule("projects:write", 201, FORBIDDEN, FORBIDDEN, NAMED),
    ("projects/batch", "POST"): Rule("projects:write", 201, FORBIDDEN, FORBIDDEN, items(NAMED)),
    ("tokens/batch", "POST"): Rule("tokens:issue", 201, 400, 201, items({"name": "New", "project": "theirs"})),
    ("policies/batch", "POST"): Rule("policies:write", 201, 400, 201, items(OWN_POLICY)),
    ("overrides/batch", "POST"): Rule("overrides:write", 201, 400, 201, items(OVERRIDE)),
    ("projects/theirs", "GET"): Rule("projects:read", 200, MISSING, 200),
    ("projects/theirs", "PUT"): Rule("projects:write", 200, MISSING, 200, {**NAMED, "slug": "theirs"}),
    ("projects/theirs", "PATCH"): Rule("projects:write", 200, MISSING, 200, {"name": "New"}),
    ("projects/theirs", "DELETE"): Rule("projects:write", 204, MISSING, 204),
    ("projects/theirs/suspend", "POST"): Rule("projects:write", 200, MISSING, 200),
    ("projects/theirs/resume", "POST"): Rule("projects:write", 200, MISSING, 200),
    ("projects/theirs/tokens", "GET"): Rule("tokens:read", 200, MISSING, 200),
    ("projects/theirs/tokens", "POST"): Rule("tokens:issue", 201, MISSING, 201, {"name": "New"}),
    ("tokens", "GET"): Rule("tokens:read", 200, 200, 200),
    ("tokens/{token}", "GET"): Rule("tokens:read", 200, MISSING, 200),
    ("tokens/{token}", "PATCH"): Rule("tokens:issue", 200, MISSING, 200, {"name": "New"}),
    ("tokens/{token}", "DELETE"): Rule("tokens:write", 204, MISSING, 204),
    ("tokens/{token}/revoke", "POST"): Rule("tokens:issue", 200, MISSING, 200),
    ("tokens/{token}/suspend", "POST"): Rule("tokens:write", 200, MISSING, 200),
    ("tokens/{token}/resume", "POST"): Rule("tokens:write", 200, MISSING, 200),
    ("tokens/{token}/rotate", "POST"): Rule("tokens:issue", 201, MISSING, 201),
    ("policies", "GET"): Rule("policies:read", 200, 200, 200),
    ("policies", "POST"): Rule("policies:write", 201, 400, 201, OWN_POLICY),
    ("policies/theirs", "GET"): Rule("policies:read", 200, MISSING, 200),
    ("policies/theirs", "PUT"): Rule("policies:write", 200, MISSING, 200, {**OWN_POLICY, "slug": "theirs"}),
    ("policies/theirs", "PATCH"): Rule("policies:write", 200, MISSING, 200, {"name": "New"}),
    ("policies/theirs", "DELETE"): Rule("policies:write", 204, MISSING, 204),
    ("global", "GET"): Rule("policies:read", 200, 200, 200),
    ("global", "PUT"): Rule("policies:write", 200, FORBIDDEN, FORBIDDEN, {"policy": None}),
    ("overrides", "GET"): Rule("policies:read", 200, 200, 200),
    ("overrides", "POST"): Rule("overrides:write", 201, 400, 201, OVERRIDE),
    ("overrides/{override}", "GET"): Rule("policies:read", 200, MISSING, 200),
    ("overrides/{override}", "PATCH"): Rule("overrides:write", 200, MISSING, 200, {"quota": 2}),
    ("overrides/{override}", "DELETE"): Rule("overrides:write", 204, MISSING, 204),
    ("prices", "GET"): Rule("prices:read", 200, 200, 200),
    ("prices", "PUT"): Rule("prices:write", 201, FORBIDDEN, FORBIDDEN, PRICE),
    ("prices/estimates", "GET"): Rule("prices:read", 200, FORBIDDEN, FORBIDDEN),
    ("prices/{price}", "GET"): Rule("prices:read", 200, 200, 200),
    ("prices/{price}", "PATCH"): Rule("prices:write", 200, FORBIDDEN, FORBIDDEN, {"input": 1}),
    ("prices/{price}", "DELETE"): Rule("prices:write", 204, FORBIDDEN, FORBIDDEN),
    ("revisions", "GET"): Rule("revisions:read", 200, FORBIDDEN, FORBIDDEN),
    ("revisions/1", "GET"): Rule("revisions:read", 200, FORBIDDEN, FORBIDDEN),
    ("revisions/1/rollback", "POST"): Rule("revisions:write", 200, FORBIDDEN, FORBIDDEN, REASON),
    # The audit does not say what it changed, so nobody can undo it.
    ("revisions/1/undo", "POST"): Rule("revisions:write", 409, FORBIDDEN, FORBIDDEN, REASON),
    ("memberships", "GET"): Rule("memberships:read", 200, 200, 200),
    # Which accounts there are is said to keys for all projects only.
    ("memberships", "POST"): Rule("memberships:write", 201, 400, 400, MEMBER),
    ("memberships/{membership}", "GET"): Rule("memberships:read", 200, MISSING, 200),
    ("memberships/{membership}", "PATCH"): Rule("memberships:write", 200, MISSING, 200, {"role": "owner"}),
    ("memberships/{membership}", "DELETE"): Rule("memberships:write", 204, MISSING, 204),
    ("management-keys", "GET"): Rule("keys:read", 200, 200, 200),
    ("management-keys", "POST"): Rule("keys:write", 201, 400, 201, KEY),
    ("management-keys/{key}", "GET"): Rule("keys:read", 200, MISSING, 200),
    ("management-keys/{key}", "PATCH"): Rule("keys:write", 200, MISSING, 200, {"name": "New"}),
    ("management-keys/{key}/revoke", "POST"): Rule("keys:write", 200, MISSING, 200),
    ("management-keys/{key}/rotate", "POST"): Rule("keys:write", 201, MISSING, 201),
    ("instances", "GET"): Rule("instances:read", 200, FORBIDDEN, FORBIDDEN),
    ("usage", "GET"): Rule("usage:read", 200, 400, 200, query="?project=theirs"),
    ("usage/metered", "GET"): Rule("usage:read", 200, 400, 200, query="?project=theirs"),
    ("usage/models", "GET"): Rule("usage:read", 200, 400, 200, query="?project=theirs"),
    ("usage/labels", "GET"): Rule("usage:read", 200, 400, 200, query="?project=theirs&label=team"),
    ("reservations", "GET"): Rule("reservations:read", 200, 400, 200, query="?project=theirs"),
    ("reservations/{reservation}", "GET"): Rule("reservations:read", 200, MISSING, 200),
    # The store has no record of it any more, so nobody can settle it.
    ("reservations/{reservation}/settle", "POST"): Rule("reservations:settle", 409, MISSING, 409, COSTS),
    ("reservations/{reservation}/release", "POST"): Rule("reservations:settle", 409, MISSING, 409, REASON),
    ("counters", "GET"): Rule("counters:read", 200, MISSING, 200, query="?token={token}"),
    ("counters/reset", "POST"): Rule("counters:reset", 200, MISSING, 200, REASON, "?token={token}"),
    ("denials", "GET"): Rule("usage:read", 200, 400, 200, query="?project=theirs"),
    ("explain", "POST"): Rule("usage:read", 200, 400, 200, {"token": "theirs"}),
    ("apply", "POST"): Rule(
        "policies:read", 200, 200, 200, {"files": [{"apiVersion": "sluicegate/v1", "shared": True}]}
    ),
    ("preview", "POST"): Rule("usage:read", 200, 400, 200, {"policy": "theirs"}),
    ("jobs", "GET"): Rule("jobs:read", 200, 200, 200),
    ("jobs/{job}", "GET"): Rule("jobs:read", 200, MISSING, 200),
    ("jobs/{job}", "DELETE"): Rule("jobs:cancel", 204, MISSING, 204),
    ("alert-rules", "GET"): Rule("alerts:read", 200, 200, 200),
    ("alert-rules", "POST"): Rule("alerts:write", 201, 400, 201, ALERT),
    ("alert-rules/{rule}", "GET"): Rule("alerts:read", 200, MISSING, 200),
    ("alert-rules/{rule}", "PATCH"): Rule("alerts:write", 200, MISSING, 200, {"name": "New"}),
    ("alert-rules/{rule}", "DELETE"): Rule("alerts:write", 204, MISSING, 204),
    ("drafts", "GET"): Rule("policies:read", 200, 200, 200),
    ("drafts/{draft}", "GET"): Rule("policies:read", 200, MISSING, 200),
    ("alert-events", "GET"): Rule("alerts:read", 200, 200, 200),
    ("alert-events/{event}", "GET"): Rule("alerts:read", 200, MISSING, 200),
    ("webhooks", "GET"): Rule("webhooks:read", 200, 200, 200),
    ("webhooks", "POST"): Rule("webhooks:write", 201, 400, 201, WEBHOOK),
    ("webhooks/{webhook}", "GET"): Rule("webhooks:read", 200, MISSING, 200),
    ("webhooks/{webhook}", "PATCH"): Rule("webhooks:write", 200, MISSING, 200, {"name": "New"}),
    ("webhooks/{webhook}", "DELETE"): Rule("webhooks:write", 204, MISSING, 204),
    ("webhooks/{webhook}/rotate", "POST"): Rule("webhooks:write", 200, MISSING, 200),
    ("webhooks/{webhook}/test", "POST"): Rule("webhooks:write", 201, MISSING, 201),
    ("deliveries", "GET"): Rule("webhooks:read", 200, 200, 200),
    ("deliveries/{delivery}", "GET"): Rule("webhooks:read", 200, MISSING, 200),
    ("deliveries/{delivery}/replay", "POST"): Rule("webhooks:write", 200, MISSING, 200),
    ("suspensions", "GET"): Rule("emergency:read", 200, FORBIDDEN, FORBIDDEN),
    ("suspensions", "POST"): Rule("emergency:write", 201, FORBIDDEN, FORBIDDEN, VALUE),
    ("suspensions/{suspension}", "GET"): Rule("emergency:read", 200, FORBIDDEN, FORBIDDEN),
    ("suspensions/{suspension}", "DELETE"): Rule("emergency:write", 204, FORBIDDEN, FORBIDDEN),
    ("break-glass", "GET"): Rule("emergency:read", 200, FORBIDDEN, FORBIDDEN),
    ("break-glass", "PUT"): Rule("emergency:write", 200, FORBIDDEN, FORBIDDEN, {"seconds": 60, **REASON}),
    ("break-glass", "DELETE"): Rule("emergency:write", 204, FORBIDDEN, FORBIDDEN),
    ("audit", "GET"): Rule("audit:read", 200, FORBIDDEN, FORBIDDEN),
    ("audit/export", "GET"): Rule("audit:read", 200, FORBIDDEN, FORBIDDEN),
    ("statements/export", "GET"): Rule("usage:read", 200, 200, 200),
    ("usage/export", "GET"): Rule("usage:read", 200, 200, 200),
}
# For everybody: neither says anything about what is kept here.
PUBLIC = {"openapi.json", "docs/", ""}
# For tokens of consumers, see tests/controlplane/consumers.
OF_CONSUMERS = {"me", "me/usage"}
EXAMPLES = {
    "projects": {"slug": "theirs"},
    "tokens": {"id": "{token}"},
    "policies": {"slug": "theirs"},
    "overrides": {"id": "{override}"},
    "prices": {"id": "{price}"},
    "revisions": {"number": "1"},
    "reservations": {"pk": "{reservation}"},
    "memberships": {"id": "{membership}"},
    "jobs": {"id": "{job}"},
    "suspensions": {"id": "{suspension}"},
    "management-keys": {"id": "{key}"},
    "alert-rules": {"id": "{rule}"},
    "drafts": {"id": "{draft}"},
    "alert-events": {"id": "{event}"},
    "webhooks": {"id": "{webhook}"},
    "deliveries": {"id": "{delivery}"},
}


def routes(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        text = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, text)
        else:
            yield text, pattern


def address(route: str) -> str:
    """Return the route with the example of its collection in place of what is variable."""
    plain = route.replace("^", "").replace("\\Z", "").replace("$", "")
    collection = plain.partition("/")[0]
    head, found, rest = plain.partition("(?P<")
    if not found:
        return plain
    name, _, rest = rest.partition(">")
    closing = next(i for i in range(len(rest)) if rest[: i + 1].count("(") < rest[: i + 1].count(")"))
    return head + EXAMPLES[collection][name] + rest[closing + 1 :]


def existing() -> set[tuple[str, str]]:
    return {
        (address(route), method.upper())
        for route, pattern in routes(api_urls.urlpatterns)
        if address(route) not in PUBLIC | OF_CONSUMERS
        for method in pattern.callback.actions
        if method != "head"
    }


def test_every_route_has_a_rule():
    """A new address fails here until somebody has decided who may use it."""
    assert existing() == set(RULES)


@pytest.fixture(scope="module")
def made(kept_rows: None) -> dict[str, str]:
    """A project "theirs" with everything that a project can have, and another one."""
    project = ProjectFactory(slug="theirs")
    ProjectFactory(slug="mine")
    PolicyFactory(slug="theirs", project=project)
    limit = LimitFactory(policy=PolicyFactory(slug="theirs--used", project=project), name="per-minute")
    project.policy = limit.policy
    project.save()
    token = TokenFactory(project=project, name="theirs")
    Revision.objects.create(number=1, changes={"full": True, "documents": {}})
    now = timezone.now()
    lost = Reservation.objects.create(pk=f"{project.pk}.{'a' * 32}", project_id=project.pk, at=now, expires_at=now)
    override = OverrideFactory(limit=limit, token=token, quota=3)
    job = run.start("test", "Count", projects=[project], created_by="ann", channel="api")
    UserFactory(username="eve")
    made = {"token": token, "override": override, "price": ModelPriceFactory(), "reservation": lost, "job": job}
    made["membership"] = MembershipFactory(project=project)
    made["draft"] = PolicyDraftFactory(policy=limit.policy)
    made["key"] = ManagementKeyFactory(scopes=["keys:write"], projects=[project])
    made["suspension"] = Suspension.objects.create(token=token, reason="x", by="ann")
    made |= zip(("webhook", "rule", "event", "delivery"), alerted(project, "theirs"), strict=True)
    return {name: row.pk for name, row in made.items()}


@pytest.fixture
def ids(made: dict[str, str], store) -> dict[str, str]:
    """The primary keys of what is there, before an empty store."""
    return made


def key_of(*scopes: str, project: str = "") -> ManagementKey:
    projects = list(ProjectFactory._meta.model.objects.filter(slug=project)) if project else []
    return ManagementKeyFactory(scopes=list(scopes), projects=projects)


def status_of(call, route: str, method: str, ids: dict[str, str], key: ManagementKey | None) -> int:
    rule = RULES[route, method]
    path = (route + rule.query).format(**ids)
    return call(method, path, rule.body, key=key).status_code


every_route = pytest.mark.parametrize(("route", "method"), RULES, ids=lambda part: part)


@every_route
def test_the_right_scope_alone_suffices(call, ids, route, method):
    """Nothing else is asked for."""
    rule = RULES[route, method]

    assert status_of(call, route, method, ids, key_of(rule.scope)) == rule.right


@every_route
def test_every_other_key_gets_its_status(call, ids, route, method):
    """
    Nobody is refused before anything is said about what is there, and so is a key that may do all the rest.

    For a key of another project, it is as if it were not there. A key of the project may do what concerns it alone.
    """
    rule = RULES[route, method]
    others = [scope for scope in SCOPES if scope not in (rule.scope, IMPLIED.get(rule.scope), "*")]
    expected = {"nobody": 401, "other scopes": 403, "another project": rule.foreign, "the project": rule.own}
    keys = (None, key_of(*others), key_of(rule.scope, project="mine"), key_of(rule.scope, project="theirs"))

    found = {}
    for name, key in zip(expected, keys, strict=True):
        with transaction.atomic():  # so that each finds the rows as they were made
            found[name] = status_of(call, route, method, ids, key)
            transaction.set_rollback(True)

    assert found == expected


@pytest.mark.parametrize("path", ["projects", "policies", "overrides"])
def test_a_key_of_another_project_lists_nothing_of_it(call, ids, path):
    """Lists are cut to what is its own."""
    response = call("GET", path, key=key_of("*", project="mine"))

    assert "theirs" not in response.content.decode()


def test_a_key_of_some_projects_reads_shared_policies_and_changes_none(call, ids):
    """Its projects may use them, as others do."""
    PolicyFactory(slug="shared")
    key = key_of("*", project="mine")

    assert call("GET", "policies/shared", key=key).status_code == 200
    for method, body in (("PATCH", {"name": "New"}), ("PUT", POLICY), ("DELETE", None)):
        assert call(method, "policies/shared", body, key=key).status_code == 403


def test_a_key_of_some_projects_makes_no_shared_policy(call, ids):
    """Nor by leaving the owner out."""
    key = key_of("*", project="mine")

    response = call("POST", "policies", POLICY, key=key)

    assert response.json()["errors"][0]["code"] == "key_limited_to_projects"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "projects/mine", {"policy": "theirs"}),
        ("POST", "projects/mine/tokens", {"name": "x", "policy": "theirs"}),
        ("POST", "policies", {**POLICY, "project": "theirs"}),
        ("POST", "overrides", {**OVERRIDE, "project": "mine"}),
    ],
)
def test_what_is_foreign_cannot_be_referred_to(call, ids, method, path, body):
    """The answer is that of something that is not there."""
    response = call(method, path, body, key=key_of("*", project="mine"))

    assert (response.status_code, response.json()["errors"][0]["code"]) == (400, "does_not_exist")
