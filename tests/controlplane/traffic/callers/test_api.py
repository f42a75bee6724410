"""The preview over REST, and changes that are only tried."""

from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from tests.factories import LimitFactory, ManagementKeyFactory, PolicyFactory, ProjectFactory, TokenFactory

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def limit():
    return LimitFactory(policy=PolicyFactory(slug="free"), name="per-minute", quota=10)


@pytest.fixture
def token(limit, sent):
    token = TokenFactory(policy=limit.policy)
    sent(token, 30, minutes_ago=90, now=timezone.now())
    return token


def test_a_preview_says_whom_a_policy_would_deny(api, token):
    """The numbers with their range, the callers, and how exact it is."""
    reply = api("POST", "preview", {"policy": "free"}).json()

    assert (reply["callers"], reply["requests"], reply["concerned"]) == (1, 30, 1)
    assert reply["would_deny"]["requests"] == {"low": 20, "likely": 20, "high": 20}
    assert reply["most_affected"][0] | {"would_deny": None} == {
        "token": token.pk,
        "project": None,
        "anonymous": False,
        "requests": 30,
        "would_deny": None,
        "busiest_minute": 30,
    }
    assert reply["resolution"]["exact"] is True


def test_no_data_is_null(api, limit):
    """Nothing recorded is not a zero."""
    assert api("POST", "preview", {"policy": "free"}).json()["would_deny"] is None


def iso(**ago):
    return (timezone.now() - timedelta(**ago)).isoformat()


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        ({}, "#/policy", "required"),
        ({"policy": "free", "from": "yesterday"}, "#/from", "RFC 3339"),
        ({"policy": "free", "from": iso(days=30)}, "#/from", "within the last 8 days"),
        ({"policy": "free", "from": iso(hours=1), "to": iso(hours=2)}, "#/from", "before the end"),
        ({"policy": "free", "span": "24h"}, "#/span", "Unknown field"),
    ],
)
def test_a_wrong_question_is_refused(api, limit, body, field, text):
    """The field and the rule are named."""
    reply = api("POST", "preview", body)

    assert reply.status_code == 400
    assert [error for error in reply.json()["errors"] if error["pointer"] == field and text in error["detail"]]


def test_a_limited_key_learns_nothing_of_other_projects(call, token, sent):
    """A shared policy is previewed with the tokens of the key's projects."""
    own = ProjectFactory()
    key = ManagementKeyFactory(projects=[own])
    sent(TokenFactory(project=own, policy=token.policy), 12, minutes_ago=90, now=timezone.now())

    reply = call("POST", "preview", {"policy": "free"}, key=key).json()

    assert (reply["callers"], reply["requests"]) == (1, 12)
    assert token.pk not in str(reply)


def test_a_job_replays_it_for_a_key(api, token):
    """However many callers there are. Its result has the numbers of the preview."""
    started = api("POST", "preview", {"policy": "free", "job": True})
    while run.run_next():
        pass

    job = api("GET", started["Location"].removeprefix("/api/v1/")).json()
    assert (started.status_code, started.json()) == (202, {"job": job["id"]})
    assert (job["state"], job["done"], job["title"]) == ("done", 1, "Replay 24 hours of free")
    assert job["result"]["would_deny"]["requests"] == {"low": 20, "likely": 20, "high": 20}
    assert [one["id"] for one in job["result"]["most_affected"]] == [token.pk]


def test_a_repetition_starts_no_second_job(api, token):
    """The first response may be lost although the job was started."""
    first, again = (api("POST", "preview", {"policy": "free", "job": True}, idempotency_key="a") for _ in range(2))

    assert (again.status_code, again.json(), again["Location"]) == (202, first.json(), first["Location"])
    assert Job.objects.count() == 1


@pytest.mark.parametrize("revoked", [False, True])
def test_a_job_of_a_limited_key_sees_its_projects(call, limit, token, sent, revoked):
    """Of a shared policy, only the own callers are judged. A key that was revoked meanwhile learns nothing."""
    project = ProjectFactory(slug="own")
    key = ManagementKeyFactory(scopes=["usage:read", "jobs:read"], projects=[project])
    own = TokenFactory(project=project, policy=limit.policy)
    sent(own, 15, minutes_ago=90, now=timezone.now())

    started = call("POST", "preview", {"policy": "free", "job": True}, key=key)
    if revoked:
        key.revoke(timezone.now())
    while run.run_next():
        pass

    job = Job.objects.get(pk=started.json()["job"])
    if revoked:
        assert (job.state, job.result) == ("failed", {})
    else:
        assert [one["id"] for one in job.result["most_affected"]] == [own.pk]
        assert call("GET", f"jobs/{job.pk}", key=key).status_code == 200


def test_the_job_of_a_global_policy_is_for_those_who_may_see_every_project(api, call, limit, token):
    """Its result names callers of all projects, also if one alone has the policy besides."""
    limit.policy.is_global = True
    limit.policy.save()
    ProjectFactory(slug="other")
    key = ManagementKeyFactory(scopes=["jobs:read"], projects=[token.project])

    job = api("POST", "preview", {"policy": "free", "job": True}).json()["job"]

    assert api("GET", f"jobs/{job}").status_code == 200
    assert call("GET", f"jobs/{job}", key=key).status_code == 404
