"""The detail of a preview that is too large for a page, as a job."""

import time
from datetime import timedelta

import pytest
from django.utils import timezone

from controlplane.objects.policies.models import Limit
from controlplane.operations.jobs import run as running
from controlplane.operations.jobs.models import Job
from controlplane.operations.jobs.replay import start_replay
from controlplane.releases.review.attaching import attachment_review
from controlplane.releases.review.reviews import with_preview
from tests.controlplane.pages import text_of
from tests.controlplane.web.kit.reviews import ReviewForm
from tests.controlplane.web.kit.test_forms import POLICIES, fields_of, policy_fields
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
def ask_for_replay(limit, monkeypatch):
    """Review a quota of 12 as somebody, and press the button that replays it as a job."""
    monkeypatch.setattr("controlplane.releases.preview.previews.MOST_CELLS", 1)

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


def test_the_job_replays_each_caller(as_ann, ask_for_replay, tokens, monkeypatch):
    """Some at a time, with progress, and its page says what the review would have said."""
    monkeypatch.setattr(running, "AT_ONCE", 1)
    monkeypatch.setattr(running, "SLICE_SECONDS", 0.0)
    page = ask_for_replay(as_ann)
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


def test_whoever_loses_the_role_learns_nothing_more(client, ask_for_replay, tokens, limit, monkeypatch):
    """A slice looks at what its author may see now."""
    member = MembershipFactory(project=limit.policy.project, role="editor")
    client.force_login(member.user)
    ask_for_replay(client)
    member.delete()
    member.user.is_staff = False
    member.user.save()

    run(job := Job.objects.get())

    assert (job.state, job.result) == ("failed", {})
    assert "may not see all of these projects any more" in job.error


def test_a_policy_that_is_deleted_meanwhile_ends_the_job(as_ann, ask_for_replay, tokens, limit, monkeypatch):
    """There is nobody left to judge."""
    ask_for_replay(as_ann)
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
    review = with_preview(review, timezone.now())

    job = start_replay(review, [], None, created_by="ann", channel="admin")

    assert list(job.projects.all()) == [limit.policy.project]


# A worker that stays in the middle of its second slice, and one that works.
STUCK = """
import time
from controlplane.operations.jobs import run as running
running.SLICE_SECONDS = 0.0
from controlplane.operations.jobs import replay as replaying
found = replaying._together
replaying._together = lambda result, more: time.sleep(600) if result else found(result, more)
running.run_all(600)
"""


@pytest.fixture
def stuck(as_ann, ask_for_replay, tokens, monkeypatch, run_python):
    """Ann's job, and the process of the worker that is in its second slice."""
    monkeypatch.setattr(running, "AT_ONCE", 1)
    ask_for_replay(as_ann)
    worker, deadline = run_python(STUCK), time.monotonic() + 120
    while not (job := Job.objects.get()).failures or not job.done:
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.05)
    yield job, worker
    worker.kill()
    worker.wait()


def killed(worker):
    """Kill a worker, and let the time pass after which it counts as killed."""
    worker.kill()
    worker.wait()
    past = timezone.now() - timedelta(minutes=1)
    Job.objects.active().update(touched_at=past)


def test_another_worker_goes_on_after_one_was_killed(stuck):
    """Nobody takes the slice while its worker may be at it. Each caller is counted once."""
    job, worker = stuck
    assert not running.run_next()

    killed(worker)
    run(job)

    assert (job.state, job.done, job.failures) == ("done", 3, 0)
    assert job.result["would_deny"]["requests"] == {"low": 24, "likely": 24, "high": 24}


def test_a_job_that_kills_each_worker_ends(stuck, as_ann):
    """It does not run for ever, and its page says why it ended."""
    job, worker = stuck
    Job.objects.update(failures=running.MOST_FAILURES)

    killed(worker)
    assert running.run_next()

    job.refresh_from_db()
    assert (job.state, job.done) == ("failed", 1)
    assert "Its worker was killed several times." in text_of(as_ann.get(f"/admin/jobs/job/{job.pk}/change/"))


def test_a_replay_is_cancelled_in_the_middle_of_a_slice(stuck, as_ann):
    """What its worker finds after that is dropped, also if that worker is killed."""
    job, worker = stuck

    page = text_of(as_ann.post(f"/admin/jobs/job/{job.pk}/cancel/", follow=True))
    killed(worker)

    job.refresh_from_db()
    assert (job.state, job.done, running.run_next()) == ("cancelled", 1, False)
    assert "The job is cancelled." in page


def test_a_second_request_for_the_same_replay_finds_the_first(as_ann, client, ask_for_replay, tokens, limit):
    """As long as it waits or runs, and only for the same person."""
    ask_for_replay(as_ann)
    ask_for_replay(as_ann)
    assert Job.objects.count() == 1

    client.force_login(MembershipFactory(project=limit.policy.project, role="editor").user)
    ask_for_replay(client)
    assert Job.objects.count() == 2

    running.run_all(60.0)
    ask_for_replay(as_ann)
    assert Job.objects.count() == 3
