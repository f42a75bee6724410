"""Changes of overrides over REST that are only tried."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.overrides.models import Override
from controlplane.releases.publishing.models import OutboxEntry
from tests.factories import (
    ManagementKeyFactory,
    OverrideFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def token(token, sent):
    sent(token, 70, minutes_ago=90, now=timezone.now())
    return token


@pytest.fixture
def override(token):
    return OverrideFactory(limit=token.policy.limits.get(), token=token, quota=60)


def nothing_is_written():
    return not (AuditEntry.objects.exists() or OutboxEntry.objects.exists())


def test_a_tried_override_is_answered_by_its_review(api, token):
    """The answer has the shape of that for a policy."""
    body = {"limit": "free/per-minute", "token": token.pk, "quota": 10, "reason": "abuse"}

    response = api("POST", "overrides?dry_run=true", body)
    reply = response.json()

    assert (response.status_code, reply["headline"]) == (
        200,
        "The override of free/per-minute for the token web begins: 25 becomes 10",
    )
    assert [(one["limit"], one["effect"], one["note"]) for one in reply["changes"]] == [
        ("free/per-minute", "tighter", "")
    ]
    assert (reply["tokens"], reply["projects"], reply["needs_reason"]) == (1, ["chat"], True)
    assert reply["preview"]["would_deny"]["requests"]["likely"] == 60
    assert "Sluicegate-Revision" not in response.headers
    assert nothing_is_written()
    assert not Override.objects.exists()


@pytest.mark.parametrize(
    ("method", "denied", "headline"), [("PATCH", 30, "60 becomes 40"), ("DELETE", 45, "60 becomes 25")]
)
def test_a_tried_change_leaves_the_override(api, override, method, denied, headline):
    """It is judged as it would be, and is still as it was."""
    body = {"quota": 40} if method == "PATCH" else None

    reply = api(method, f"overrides/{override.pk}?dry_run=true", body).json()

    assert reply["headline"].endswith(headline)
    assert reply["preview"]["would_deny"]["requests"]["likely"] == denied
    assert (Override.objects.get().quota, nothing_is_written()) == (60, True)


def test_an_end_is_told_in_the_note(api, override):
    """What changes later says from when on."""
    end = (timezone.now() + timedelta(days=1)).replace(microsecond=0)

    reply = api("PATCH", f"overrides/{override.pk}?dry_run=true", {"ends_at": end.isoformat()}).json()

    assert [(one["effect"], one["note"]) for one in reply["changes"]] == [
        ("tighter", f"from {end:%Y-%m-%d %H:%M} UTC on")
    ]
    assert reply["preview"]["would_deny"]["requests"]["likely"] == 45


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"quota": -1}, "#/quota"), ({"quota": "4"}, "#/quota"), ({"ends_at": "2020-01-01T00:00:00Z"}, "#/ends_at")],
)
def test_a_try_refuses_what_the_change_would(api, override, body, pointer):
    """With the same errors."""
    replies = [api("PATCH", f"overrides/{override.pk}{query}", body) for query in ("", "?dry_run=true")]

    assert [(one.status_code, one.json()["errors"][0]["pointer"]) for one in replies] == [(400, pointer)] * 2


def test_a_try_of_an_override_that_is_there_already_is_refused(api, override):
    """As the change itself is."""
    body = {"limit": "free/per-minute", "token": override.token_id, "quota": 10, "reason": "abuse"}

    assert api("POST", "overrides?dry_run=true", body).json()["errors"][0]["code"] == "unique"
    assert api("DELETE", "overrides/ovr_none?dry_run=true").status_code == 404


def test_dry_run_is_true_or_false(api, override):
    """Any other word is refused, so that nothing is deleted by mistake."""
    reply = api("DELETE", f"overrides/{override.pk}?dry_run=yes")

    assert (reply.status_code, reply.json()["errors"][0]["parameter"]) == (400, "dry_run")
    assert Override.objects.exists()


def test_a_change_that_is_not_tried_is_made_once(api, token, store):
    """The query has no say in what the key of the request means."""
    body = {"limit": "free/per-minute", "token": token.pk, "quota": 10, "reason": "abuse"}
    replies = [api("POST", "overrides", body, idempotency_key="once") for _ in range(2)]

    assert [one.status_code for one in replies] == [201, 201]
    assert (Override.objects.count(), AuditEntry.objects.count()) == (1, 1)


def test_the_overrides_of_the_tokens_of_a_project_are_listed(api, call, override):
    """Not those of the project itself, and not those of a project that the key may not see."""
    chat, limit = override.token.project, override.limit
    OverrideFactory(limit=limit, token=None, project=chat)
    other = OverrideFactory(limit=limit, token__policy=limit.policy)
    limited = ManagementKeyFactory(projects=[other.token.project])

    found = api("GET", "overrides?token_project=chat").json()["results"]
    foreign = call("GET", "overrides?token_project=chat", key=limited)

    assert [one["id"] for one in found] == [override.pk]
    assert (foreign.status_code, foreign.json()["errors"][0]["code"]) == (400, "does_not_exist")
