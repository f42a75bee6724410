"""Whatever the OpenAPI document allows is accepted, whatever it forbids is refused, and every answer is as it says."""

import itertools
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.change.transaction import Actor, change
from controlplane.objects.emergency.models import Suspension
from controlplane.objects.keys.models import ManagementKey
from controlplane.objects.overrides.models import Override
from controlplane.objects.people.models import Membership
from controlplane.objects.policies.models import Policy
from controlplane.objects.prices.models import ModelPrice
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.alerts.models import AlertEvent, AlertRule
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from controlplane.operations.webhooks.models import Delivery, Destination
from controlplane.releases.drafts.models import PolicyDraft
from controlplane.releases.publishing.models import Revision
from controlplane.traffic.reservations.models import SETTLED, Reservation
from controlplane.web.restkit.parsers import MergePatchParser
from tests.controlplane.objects.people.world import alerted
from tests.factories import (
    DeniedRequestFactory,
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    ModelPriceFactory,
    OverrideFactory,
    PolicyDraftFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)
from tests.scale import scale

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
# An answer that its document does not describe shows with cases made from its rules. A value that only some
# rule of ours refuses needs many random ones. A second database can only dislike a value that the rules let through.
SEEDS, EXAMPLES = scale(((20261124,), 1), ((20261124, 1, 2), 20))
IS_RANDOM = scale("DATABASE_URL" in os.environ, True)
# Rules that tie fields together or to other rows, which a schema cannot state.
RULES = {
    *("does_not_exist", "unique", "unique_together", "immutable", "invalid_limit", "range", "needs_limit", "blank"),
    *("rule", "fraction", "parse_error", "invalid_cursor", "null_characters_not_allowed", "one_of_two"),
    *("does_not_apply", "past", "ended", "invalid_metering", "currency", "empty"),
    *("url", "required", "emails", "no_mail_server", "foreign"),
    # Of spaces at either end and of characters that are not printable.
    *("invalid_label", "invalid_partition"),
    "invalid_reason",  # of a header that has another reason than the body
    "header_not_supported",  # of an If-None-Match that some cases fill with a number, whatever its pattern is
    "unprintable",  # of the tag characters beyond the Basic Multilingual Plane, which the pattern leaves out
}


PLAIN = re.compile("[!#-~]+")


def configured(seed: int) -> SchemathesisConfig:
    # A stale If-Match is told before the body is looked at: 412 refuses what is wrong and what is right.
    refused = ["400", "401", "404", "405", "406", "409", "412", "415"]
    checks = {
        "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "409", "412"]},
        "negative_data_rejection": {"expected-statuses": refused},
    }
    generation = {"max-examples": EXAMPLES, "deterministic": True}
    # These cases, over a hundred for most operations, are the same whatever the seed is.
    # Those of examples in the document are among them; a full run also has them beside random values.
    phases = {
        "coverage": {"enabled": seed == SEEDS[0]},
        "fuzzing": {"enabled": IS_RANDOM},
        "examples": {"enabled": scale(False, True)},
    }
    return SchemathesisConfig.from_dict({"seed": seed, "checks": checks, "generation": generation, "phases": phases})


@pytest.fixture(params=SEEDS)
def seed(request) -> int:
    return request.param


@pytest.fixture
def connected() -> Iterator[None]:
    """Keep the connection to the database from request to request, as Django's own test client does."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """
    Leave out the rules between the fields of a limit.

    The generator multiplies the alternatives of all of them, and gives up. They are compared with what the library
    refuses in tests/enforcement/model/test_limit_schema.py.
    """
    del raw_schema["components"]["schemas"]["Limit"]["allOf"]


@pytest.fixture
def openapi(store, seed, connected) -> Any:
    return schemathesis.openapi.from_wsgi("/api/v1/openapi.json", get_wsgi_application(), config=configured(seed))


@schemathesis.check
def valid_data_breaks_only_rules_between_fields(ctx: Any, response: Any, case: Any) -> None:
    """A request that the schema allows is refused for a rule that it cannot state, and for nothing else."""
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        problem = response.json()
        codes = {error["code"] for error in problem.get("errors", [])} or {problem["code"]}
        assert codes <= RULES, problem


def rows() -> dict[str, dict[str, str]]:
    """Make sure that there is one of each kind, and return how addresses name it."""
    if not (policy := Policy.objects.filter(slug="free").first()):
        policy = PolicyFactory(slug="free")
    limit = policy.limits.first() or LimitFactory(policy=policy)
    project = Project.objects.filter(slug="chat").first() or ProjectFactory(slug="chat", policy=policy)
    token = Token.objects.filter(project=project, revoked_at=None).first() or TokenFactory(project=project)
    Token.objects.filter(pk=token.pk).update(policy=policy)
    override = Override.objects.first() or OverrideFactory(limit=limit, token=Token.objects.get(pk=token.pk))
    price = ModelPrice.objects.first() or ModelPriceFactory()
    settled = Reservation.objects.first() or Reservation.objects.create(
        id=f"{project.pk}.{'0' * 32}", project_id=project.pk, at=NOON, expires_at=NOON, state=SETTLED
    )
    job = Job.objects.first() or run.start("test", "Count", created_by="ann", channel="api")
    suspended = Suspension.objects.first() or Suspension.objects.create(token=token, reason="x", by="ann")
    made = ManagementKey.objects.exclude(name="ann").filter(revoked_at=None).first() or ManagementKeyFactory()
    member = Membership.objects.first() or MembershipFactory(project=project)
    if not AuditEntry.objects.exists():
        with change(actor=Actor("ann", "api")) as tx:
            tx.created(project)
            tx.updated(policy, policy.as_record())
            tx.delete(TokenFactory(project=project))
    DeniedRequestFactory(project_id=project.pk, decision=f"dec_{next(denials)}")
    Revision.objects.get_or_create(number=1, defaults={"changes": {"full": True, "documents": {}}})
    return {
        "projects": {"slug": project.slug},
        "policies": {"slug": policy.slug},
        "tokens": {"id": token.pk},
        "overrides": {"id": override.pk},
        "prices": {"id": price.pk},
        "reservations": {"id": settled.pk},
        "revisions": {"number": "1"},
        "jobs": {"id": job.pk},
        "suspensions": {"id": suspended.pk},
        "memberships": {"id": member.pk},
        "management-keys": {"id": made.pk},
        "drafts": {"id": (PolicyDraft.objects.first() or PolicyDraftFactory(policy=policy)).pk},
        **alerts_of(project),
    }


def alerts_of(project: Project) -> dict[str, dict[str, str]]:
    """Return a row of each resource of alerts, made where there is none."""
    if not (Delivery.objects.exists() and AlertEvent.objects.exists()):
        alerted(project, "chat")
    rows = Destination.objects.last(), AlertRule.objects.last(), AlertEvent.objects.last(), Delivery.objects.last()
    names = ("webhooks", "alert-rules", "alert-events", "deliveries")
    return {name: {"id": row.pk} for name, row in zip(names, rows, strict=True)}


schema = schemathesis.pytest.from_fixture("openapi")
turn, denials = itertools.count(), itertools.count()
present: dict[str, dict[str, dict[str, str]]] = {}
"""What ``rows`` returned, by the key of the test."""
changed: set[str] = set()
"""The keys of tests of which a request has changed something since, so that rows may have other names or be gone."""


def is_made_by_rule(case: Any) -> bool:
    """Return whether a case is one of those of which only the first of each kind is sent, in a small run."""
    return scale(case.meta.phase.name == TestPhase.COVERAGE, False)


def kinds_of(case: Any) -> set[Any]:
    """
    Return which kinds a case is of that was made from a rule of the document.

    Each operation takes a right path and body and refuses wrong ones. A parameter that many operations have is the work
    of the same code, so each resource takes a right value and refuses a wrong one, and each of its rules is tried by
    one operation. The bodies of a resource are the work of one serializer, so each of their rules in each place is
    tried by one operation of the resource, and for a path too. Each address refuses a method that it does not have,
    and each resource all of those.
    """
    made, mode, resource = case.meta.phase.data, case.meta.generation.mode, case.path.split("/")[3]
    if case.method != case.operation.method.upper():
        return {("method", case.path), ("method", resource, case.method)}
    if made.parameter_location in (ParameterLocation.QUERY, ParameterLocation.HEADER):
        return {(resource, mode, made.parameter), (mode, made.parameter, made.scenario)}
    return {(case.operation.label, mode, made.parameter_location), (resource, mode, made.scenario, made.location)}


@schemathesis.hook("filter_case")
def is_sent(context: Any, case: Any) -> bool:
    """
    Return whether a case is sent: in a full run every one, else the first of each kind, to a row that is there.

    The others, four of five, are not even given to Hypothesis.
    """
    if not is_made_by_rule(case):
        return True
    new = kinds_of(case) - sent
    sent.update(new)
    return bool(new)


sent: set[Any] = set()
"""The kinds of cases that were sent."""


@pytest.mark.proof
@pytest.mark.usefixtures("seed")
@schema.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_api_keeps_what_its_document_promises(case: Any, key: Any) -> None:
    """No check of schemathesis fails, for addresses of things that are there and of things that are not."""
    odd = is_made_by_rule(case) or next(turn) % 2
    if key.pk not in present or (odd and key.pk in changed):
        present.clear()
        changed.clear()
        present[key.pk] = rows()
    there = present[key.pk]
    if odd and case.path_parameters and not case.meta.is_negative_at(ParameterLocation.PATH):
        case.path_parameters |= there[case.path.split("/")[3]]
        case.headers.pop("If-Match", None)
    if PLAIN.fullmatch(case.headers.get("Idempotency-Key", "")):
        case.headers["Idempotency-Key"] = str(uuid4())  # one that was used belongs to another request
    if case.media_type == MergePatchParser.media_type and case.meta.is_negative_at(ParameterLocation.BODY):
        case.media_type = "application/json"  # in a merge patch, null is never wrong inside of an object
    wrong_key = case.meta.is_negative_at(ParameterLocation.HEADER)

    secret = TokenFactory().secret if case.path.startswith("/api/v1/me/") or case.path == "/api/v1/me" else key.secret

    response = case.call_and_validate(headers={} if wrong_key else {"Authorization": f"Bearer {secret}"})
    if case.method != "GET" and response.status_code < 300:
        changed.add(key.pk)


def test_a_generator_makes_a_body_of_each_operation(openapi: Any) -> None:
    """One that it cannot make would fail in a full run only, which sends random ones."""
    made: list[Any] = []

    def make(case: Any) -> None:
        made.append(case)

    few = settings(max_examples=1, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    for operation in (one.ok() for one in openapi.get_all_operations()):
        if operation.body:
            few(given(operation.as_strategy())(make))()

    assert len(made) > 40
