"""The detail of a preview that is too large for a page, as a job."""

import pytest
from django.utils import timezone

from controlplane.jobs import running
from controlplane.jobs.models import Job
from controlplane.policies.models import Limit
from controlplane.review.attaching import attachment_review
from controlplane.review.replaying import start_replay
from controlplane.review.reviews import with_preview
from tests.controlplane.adminkit.reviews import ReviewForm
from tests.controlplane.adminkit.test_changes import POLICIES, fields_of, policy_fields
from tests.controlplane.adminkit.test_lists import text_of
from tests.factories import (
    LimitFactory,
    ManagementKeyFactory,
    MembershipFactory,
    PolicyFactory,
    ProjectFactory,
    TokenFactory,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def limit():
    policy = PolicyFactory(slug="chat--free", project=ProjectFactory(slug="chat"))
    return LimitFactory(policy=policy, name="per-minute", quota=25, algorithm="fixed_window")


@pytest.fixture
def tokens(limit, sent):
    """Five tokens that have sent 5, 10, 15, 20 and 25 requests in one minute."""
    now = timezone.now()
    found = [TokenFactory(project=limit.policy.project, policy=limit.policy, name=f"t{number}") for number in range(5)]
    for number, token in enumerate(found, 1):
        sent(token, 5 * number, minutes_ago=30, now=now)
    return found


@pytest.fixture
def ask(limit, monkeypatch):
    """Review a quota of 12 as somebody, and press the button that replays it as a job."""
    monkeypatch.setattr("controlplane.preview.previews.MOST_CELLS", 1)

    def press(client):
        url = f"{POLICIES}{limit.policy.pk}/change/"
        review = client.post(url, policy_fields(limit.policy, fields_of(limit, quota=12), initial=1))
        assert "at most 3 of 5 callers would have been limited." in text_of(review)
        return client.post(url, ReviewForm(review).fields | {"_replay": "1"}, follow=True)

    return press


def run(job):
    while job.is_active:
        assert running.run_next()
        job.refresh_from_db()


def test_the_job_replays_each_caller(as_ann, ask, tokens, monkeypatch):
    """Some at a time, with progress, and its page says what the review would have said."""
    monkeypatch.setattr(running, "AT_ONCE", 1)
    monkeypatch.setattr(running, "SLICE_SECONDS", 0.0)
    page = ask(as_ann)
    job = Job.objects.get()
    assert "Replay 24 hours of chat--free" in text_of(page)
    assert (job.total, Limit.objects.get().quota) == (3, 25)

    assert running.run_next()
    job.refresh_from_db()
    assert (job.done, job.state) == (1, "running")
    run(job)

    assert (job.state, job.done) == ("done", 3)
    assert job.result["would_deny"]["requests"] == {"low": 24, "likely": 24, "high": 24}
    assert [(one["name"], one["would_deny"]["likely"]) for one in job.result["most_affected"]] == [
        *(("t4", 13), ("t3", 8), ("t2", 3)),
    ]
    shown = text_of(as_ann.get(page.request["PATH_INFO"]))
    assert "per-minute: 12 requests per minute for each token" in shown
    assert "In the last 24 hours 3 of 5 callers and 24 of 75 requests would have been limited." in shown
    assert ">t4</a>" in as_ann.get(page.request["PATH_INFO"]).text


def test_whoever_loses_the_role_learns_nothing_more(client, ask, tokens, limit, monkeypatch):
    """A slice looks at what its author may see now."""
    member = MembershipFactory(project=limit.policy.project, role="editor")
    client.force_login(member.user)
    ask(client)
    member.delete()
    member.user.is_staff = False
    member.user.save()

    run(job := Job.objects.get())

    assert (job.state, job.result) == ("failed", {})
    assert "may not see all of these projects any more" in job.error


def test_a_policy_that_is_deleted_meanwhile_ends_the_job(as_ann, ask, tokens, limit, monkeypatch):
    """There is nobody left to judge."""
    ask(as_ann)
    limit.policy.project.delete()

    run(job := Job.objects.get())

    assert (job.state, job.error) == ("failed", "The policy was deleted.")


def test_a_project_that_gets_the_policy_meanwhile_is_not_told_of(as_ann, call, monkeypatch, sent):
    """Whoever may see the projects of the job may not see that one, so the result does not count its requests."""
    now, policy = timezone.now(), LimitFactory(policy__slug="shared", quota=25).policy
    first, later = TokenFactory(policy=policy), TokenFactory()
    for token in (first, later):
        sent(token, 40, minutes_ago=30, now=now)
    key = ManagementKeyFactory(projects=[first.project])
    everything = ManagementKeyFactory()

    started = call("POST", "preview", {"policy": "shared", "job": True}, key=everything).json()["job"]
    later.policy = policy
    later.save()
    run(Job.objects.get())

    result = call("GET", f"jobs/{started}", key=key).json()["result"]
    assert (result["callers"], result["requests"]) == (1, 40)


def test_a_job_of_one_token_belongs_to_its_project(as_ann, tokens, limit, monkeypatch):
    """Also if nobody would feel the change now, so that whoever leaves the project does not see it any more."""
    tokens[0].revoked_at = timezone.now()
    tokens[0].save()
    review = attachment_review(tokens[0], limit.policy, None)
    review = with_preview(review, {"limits": []}, timezone.now())

    job = start_replay(review, [], None, created_by="ann", channel="admin")

    assert list(job.projects.all()) == [limit.policy.project]
