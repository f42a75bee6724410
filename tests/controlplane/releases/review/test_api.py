"""Changes of a policy over REST that are only tried."""

import pytest
from django.utils import timezone

from controlplane.changes.audit.models import AuditEntry
from controlplane.objects.policies.models import Limit
from tests.factories import LimitFactory, PolicyFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def token(sent):
    limit = LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute", quota=10)
    token = TokenFactory(policy=limit.policy)
    sent(token, 30, minutes_ago=90, now=timezone.now())
    return token


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_dry_run_answers_the_review_and_writes_nothing(api, token, method):
    """The review is that of the admin; the policy, the audit and the revision stay."""
    limits = [{"name": "per-minute", "quota": 5, "window_seconds": 60}]
    body = {"limits": limits} | ({"slug": "free", "name": "Free"} if method == "PUT" else {})

    response = api(method, "policies/free?dry_run=true", body)
    reply = response.json()

    assert (reply["headline"], reply["tokens"]) == ("free gets tighter: 10 becomes 5 (per-minute)", 1)
    assert [(one["limit"], one["effect"]) for one in reply["changes"]] == [("per-minute", "tighter")]
    assert reply["preview"]["would_deny"]["requests"]["likely"] == 25
    assert (reply["needs_reason"], "Sluicegate-Revision" in response.headers) == (True, False)
    assert (Limit.objects.get().quota, AuditEntry.objects.count()) == (10, 0)


def test_a_dry_run_refuses_what_the_change_would(api, token):
    """All rules are checked before."""
    reply = api("PATCH", "policies/free?dry_run=true", {"limits": [{"name": "a", "quota": -1, "window_seconds": 60}]})

    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (400, "#/limits/0/quota")


def test_dry_run_is_true_or_false(api, token):
    """Any other word is refused, so that no change is made by mistake."""
    reply = api("PATCH", "policies/free?dry_run=yes", {"name": "New"})

    assert (reply.status_code, reply.json()["errors"][0]["parameter"]) == (400, "dry_run")
