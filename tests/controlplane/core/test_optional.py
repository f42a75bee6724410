"""What only advises refuses no page and no save: errors are raised from each source, and everything is asked."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import DataError, connection, transaction
from django.db.models import Model
from django.test import Client

from controlplane.core import optional, store
from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Limit
from controlplane.objects.projects.models import Project, Token
from enforcement.logs import RateLimitedLogger
from tests.controlplane.objects.people.addresses import address, patterns, row_of
from tests.controlplane.objects.people.world import installation, tenant
from tests.controlplane.pages import text_of
from tests.controlplane.web.kit.reviews import enforce
from tests.controlplane.web.kit.test_forms import NEW_PROJECT, POLICIES, PROJECTS, TOKENS, fields_of, policy_fields
from tests.controlplane.web.restkit.test_access import RULES
from tests.factories import PolicyFactory, UserFactory
from tests.scale import scale

pytestmark = pytest.mark.django_db

TABLES = {"usage": ("usage_", "statements_"), "preview": ("preview_",), "heartbeats": ("fleet_",)}
# In a small run only these, which show most of what is optional. All others take longer than they are worth.
FEW = {
    *("index", "near-limit", "explain-denial", "policy-advice", "first-steps"),
    *("policies_policy_changelist", "policies_policy_change", "policies_override_change", "projects_token_raise"),
    *("projects_project_change", "projects_token_changelist", "projects_token_change", "projects_token_counters"),
    *("usage_usagerow_changelist", "statements_monthrow_changelist", "prices_modelprice_changelist"),
    *("fleet_instance_changelist", "publishing_revision_changelist", "emergency_suspension_changelist"),
}


def out_of_range(*sources: str) -> Callable[[], AbstractContextManager[None]]:
    """Return what lets each statement that names a table of the sources fail, as one does whose sum is too large."""
    names = [f'"{beginning}' for source in sources for beginning in TABLES[source]]

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not any(name in sql for name in names):
            return execute(sql, params, many, context)
        if connection.vendor == "postgresql":
            return execute("SELECT 1/0", None, False, context)  # which spoils an open transaction, too
        raise DataError("bigint out of range")

    return lambda: connection.execute_wrapper(fail)


class Damaged:
    """A client of a store all of whose keys have another type."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*args: Any, **keywords: Any) -> Any:
            raise redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")

        return fail


@contextmanager
def damaged_store() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "connection", lambda *_: Damaged())
        yield


@contextmanager
def overflow() -> Iterator[None]:
    """Let every function that reads a source fail, as for an instant of the year 9999."""

    def fail() -> AbstractContextManager[None]:
        raise OverflowError("date value out of range")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optional, "_apart", fail)
        yield


@contextmanager
def everything() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(out_of_range(*TABLES)())
        stack.enter_context(damaged_store())
        yield


FAULTS = scale(
    {"everything": everything},
    {
        **{source: out_of_range(source) for source in TABLES},
        "store": damaged_store,
        "functions": overflow,
        "everything": everything,
    },
)
each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


# Pages that are about a source, and nothing else.
ABOUT_A_SOURCE = {
    name
    for name in (pattern.name for pattern in patterns())
    if name.startswith(("usage_", "statements_", "reservations_", "fleet_")) or name in ("explain-denial", "near-limit")
}


@pytest.fixture(scope="module")
def world(kept_rows: None) -> dict[str, Model]:
    UserFactory(username="ann", operator=True)
    return {**installation(), **tenant("theirs").rows}


@pytest.fixture
def admin(world: dict[str, Model]) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(User.objects.get(username="ann"))
    return client


@contextmanager
def one_of_many() -> Iterator[None]:
    """Undo what a request does, as PostgreSQL refuses all others of a transaction in which one met an error."""
    before = transaction.savepoint()
    yield
    transaction.savepoint_rollback(before)


@pytest.mark.proof
@each_fault
def test_every_page_is_answered(admin, world, failed_sources, fault):
    """One that is about the source alone says that it cannot be read, and all others show the rest."""
    found = {}
    with fault():
        for pattern in patterns():
            if pattern.name in scale(FEW, {pattern.name}):
                with one_of_many():
                    found[pattern.name] = admin.get(address(pattern, row_of(pattern, world))).status_code
        metrics = admin.get("/metrics")

    assert {name: status for name, status in found.items() if status == 500} == {}
    assert {name for name, status in found.items() if status == 503} <= ABOUT_A_SOURCE
    assert (metrics.status_code, 'sluicegate_source_errors_total{source="usage"}' in metrics.text) == (200, True)
    assert failed_sources
    failed_sources.clear()


@pytest.mark.proof
@each_fault
def test_every_route_of_rest_is_answered(api, world, failed_sources, fault):
    names = {name.partition("_")[2]: row.pk for name, row in world.items()}
    found = {}
    with fault():
        for route, method in RULES:
            if method == "GET":
                path = (route + RULES[route, method].query).format_map(Ids(names))
                with one_of_many():
                    found[route] = api("GET", path).status_code

    assert {route: status for route, status in found.items() if status == 500} == {}
    failed_sources.clear()


class Ids(dict[str, Any]):
    """The primary keys of the world by the names that routes have, or one that no row has."""

    def __missing__(self, name: str) -> str:
        return self.get({"rule": "alertrule", "event": "alertevent", "webhook": "destination"}.get(name, ""), "none")


@pytest.mark.proof
@each_fault
def test_a_limit_is_saved_through_the_admin(admin, world, failed_sources, fault):
    """Its review says that there is no preview, and is confirmed all the same."""
    policy, limit = world["policies_policy"], Limit.objects.get(pk=world["policies_limit"].pk)
    fields = policy_fields(policy, fields_of(limit, quota=limit.quota - 1), initial=1)
    with fault():
        review = admin.post(f"{POLICIES}{policy.pk}/change/", fields)
        saved = enforce(admin, review)

    has_preview = fault in (FAULTS.get("heartbeats"), FAULTS.get("store"))
    unread = "No preview now, because what is recorded of requests cannot be read."
    assert (unread in text_of(review)) != has_preview
    assert "Not all of this page is known, because" in text_of(review)
    assert (saved.status_code, Limit.objects.get(pk=limit.pk).quota) == (302, limit.quota - 1)
    failed_sources.clear()


@pytest.mark.proof
@each_fault
def test_tokens_overrides_and_projects_are_saved_through_the_admin(admin, world, failed_sources, fault):
    """What gives less is reviewed, and everything is saved."""
    limit, project = world["policies_limit"], world["projects_project"]
    token = {"project": project.pk, "name": "ci", "policy": world["policies_policy"].pk}
    override = {"limit": limit.pk, "project": project.pk, "quota": 1, "reason": "abuse"}
    with fault():
        statuses = [
            admin.post(f"{TOKENS}add/", token).status_code,
            enforce(admin, admin.post("/admin/policies/override/add/", override)).status_code,
            admin.post(f"{PROJECTS}add/", NEW_PROJECT).status_code,
        ]

    assert statuses == [200, 302, 302]
    assert Token.objects.filter(name="ci").exists()
    assert Override.objects.get(project=project).quota == 1
    assert Project.objects.filter(slug=NEW_PROJECT["slug"]).exists()
    failed_sources.clear()


@pytest.mark.proof
@each_fault
def test_everything_is_saved_over_rest(api, world, failed_sources, fault):
    """Policies, tokens, overrides and projects, each tried before."""
    policy, limit, token = (world[name] for name in ("policies_policy", "policies_limit", "projects_token"))
    other = PolicyFactory(slug="other")
    override = {"limit": f"{policy.slug}/{limit.name}", "project": "theirs", "quota": 1, "reason": "x"}
    limits = [{"name": limit.name, "quota": 2, "window_seconds": 60}]
    changes = [
        ("PATCH", f"policies/{policy.slug}", {"limits": limits}),
        ("POST", "projects/theirs/tokens", {"name": "new"}),
        ("PATCH", f"tokens/{token.pk}", {"policy": other.slug}),
        ("PATCH", f"tokens/{token.pk}", {"labels": {"team": "search"}}),
        ("POST", "overrides", override),
        ("PATCH", f"overrides/{world['policies_override'].pk}", {"quota": 2}),
        ("DELETE", f"overrides/{world['policies_override'].pk}", None),
        ("PATCH", "projects/theirs", {"policy": other.slug}),
        ("POST", f"tokens/{token.pk}/rotate", {}),
        ("POST", f"tokens/{token.pk}/revoke", {}),
    ]
    with fault():
        found = [
            [method, path, api(method, f"{path}{query}", body).status_code]
            for method, path, body in changes
            for query in ("?dry_run=true", "")
        ]

    assert [row for row in found if row[2] not in (200, 201, 204)] == []
    assert Limit.objects.get(pk=limit.pk).quota == 2
    assert not Override.objects.filter(pk=world["policies_override"].pk).exists()
    assert Token.objects.filter(name="new").exists()
    failed_sources.clear()


def test_an_error_is_logged_once_and_counted(caplog, failed_sources, settings, monkeypatch):
    """By its source, with its traceback, and the result is that of the other function."""
    monkeypatch.setattr(optional, "_errors", optional._Errors())  # of a new process
    monkeypatch.setattr(optional, "_log", RateLimitedLogger(optional.logger, seconds=optional.QUIET_SECONDS))
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "optional"}}
    cache.clear()
    reading = optional.optional(optional.PRICES, lambda number: -number)(lambda number: number // 0)

    assert [reading(number) for number in (1, 2, 3)] == [-1, -2, -3]
    optional._errors._next = 0
    reading(4)

    assert optional.error_counts()["prices"] == 4
    (line,) = [record for record in caplog.records if record.name == optional.logger.name]
    assert (line.exc_info[0], "An optional source failed (prices)" in line.getMessage()) == (ZeroDivisionError, True)
    failed_sources.clear()
