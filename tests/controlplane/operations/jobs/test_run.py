"""Jobs run in slices. Each is done once, whatever happens to the worker."""

import threading
from contextlib import closing
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.db import DatabaseError, connection
from django.utils import timezone

from controlplane.objects.policies.models import Policy
from controlplane.operations.jobs import kinds, run, tasks
from controlplane.operations.jobs.actions import check_author
from controlplane.operations.jobs.models import Job
from tests.controlplane.operations.jobs.conftest import count_to_three
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db(transaction=True)


class Killed(BaseException):
    """What ends a worker in the middle of a slice."""


def state_of(job: Job) -> tuple[str, int, int]:
    job.refresh_from_db()
    return job.state, job.done, job.total


def test_a_job_runs_slice_by_slice_until_it_is_done(work, begin):
    """The progress can be read between two slices."""
    work(count_to_three)
    job = begin()

    assert state_of(job) == ("waiting", 0, 0)
    assert run.run_next()
    assert state_of(job) == ("running", 1, 3)
    assert tasks.run_jobs() == 2
    assert state_of(job) == ("done", 3, 3)
    assert job.result == {"made": 3}
    assert not run.run_next()


def test_slices_give_way_to_other_writers_of_sqlite(work, begin):
    """They would wait for its lock in vain, if the next slice took it at once. PostgreSQL has no such lock."""
    work(count_to_three)
    begin()
    pauses = []

    run.run_all(60.0, pause=pauses.append)

    assert pauses == [run.GIVE_WAY_SECONDS] * (3 if connection.vendor == "sqlite" else 0)


def test_two_jobs_run_by_turns(work, begin):
    """A long job does not keep a short one waiting."""
    work(count_to_three)
    work(lambda job: not setattr(job, "done", job.done + 1) and job.done == 3)
    first, second = begin(), begin()

    run.run_next()
    run.run_next()

    assert (state_of(first)[1], state_of(second)[1]) == (1, 1)


def test_a_killed_worker_leaves_the_job_as_after_the_last_slice(work, begin):
    """The slice that it was at changes nothing, and the next worker does it."""

    def dies(job: Job) -> bool:
        count_to_three(job)
        raise Killed

    work(count_to_three)
    job = begin()
    run.run_next()
    work(dies)
    with pytest.raises(Killed):
        run.run_next()

    assert state_of(job) == ("running", 1, 3)
    assert Policy.objects.count() == 1
    work(count_to_three)
    run.run_all()
    assert state_of(job) == ("done", 3, 3)
    assert Policy.objects.count() == 3


@pytest.mark.skipif(not connection.features.has_select_for_update_skip_locked, reason="SQLite has one writer at a time")
def test_two_workers_do_not_run_the_same_slice(work, begin):
    """The second finds nothing to do."""
    ran_beside = []

    def run_beside() -> None:
        with closing(connection), connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '10s'")  # or it would wait for this slice, which waits for it
            ran_beside.append(run.run_next())

    def slow(job: Job) -> bool:
        other = threading.Thread(target=run_beside)
        other.start()
        other.join()
        return True

    work(slow)
    begin()
    run.run_next()

    assert ran_beside == [False]


def test_a_cancelled_job_does_not_go_on(work, begin):
    """What it has done stays done."""
    work(count_to_three)
    job = begin()
    run.run_next()

    assert run.cancel(job)
    assert not run.run_next()
    assert state_of(job) == ("cancelled", 1, 3)
    assert not run.cancel(job)


def test_a_slice_that_reads_runs_without_a_transaction_and_saves_once(work, begin):
    """It blocks no writer. If the job is cancelled meanwhile, its result is dropped."""
    seen = []

    def read(job: Job) -> bool:
        seen.append(connection.in_atomic_block)
        run.cancel(job)
        job.result = {"found": 1}
        return True

    work(read, writes=False)
    job = begin()
    run.run_next()

    assert seen == [False]
    assert state_of(job)[0] == "cancelled"
    assert job.result == {}


def test_a_refused_slice_fails_the_job_with_its_sentence(work, begin):
    """Nothing of the slice is kept."""

    def refuse(job: Job) -> bool:
        count_to_three(job)
        raise ValidationError("The policy is gone.")

    work(refuse)
    job = begin()
    run.run_all()

    assert state_of(job)[0] == "failed"
    assert job.error == "The policy is gone."
    assert not Policy.objects.exists()


def test_an_error_of_the_program_fails_the_job_and_no_other(work, begin, caplog):
    """The page says no more than that. The log has the rest."""
    work(lambda job: 1 // 0)
    job = begin()
    run.run_all()

    assert state_of(job)[0] == "failed"
    assert job.error == "An error of the server. Its log says more."
    assert "ZeroDivisionError" in caplog.text


def test_a_database_that_fails_is_tried_again_later(work, begin):
    """Not at once, and not for ever."""

    def fail(job: Job) -> bool:
        job.done += 1
        raise DatabaseError("gone")

    work(fail)
    job = begin()

    assert run.run_all() == 1
    assert state_of(job) == ("running", 0, 0)
    for _ in range(4):
        Job.objects.update(touched_at=timezone.now() - timedelta(seconds=6))
        assert run.run_all() == 1
    assert state_of(job)[0] == "failed"


def test_a_kind_that_this_release_does_not_know_fails(begin):
    """A newer release has started it."""
    job = begin()
    run.run_all()

    assert state_of(job)[0] == "failed"
    assert job.error == "This release does not know jobs of this kind."


def test_rows_are_cut_into_parts_as_they_were_confirmed(begin):
    """A slice treats some of them."""
    job = begin(ids=[f"tok_{n}" for n in range(250)])

    assert job.total == 250
    assert [len(job.part(number)) for number in range(4)] == [100, 100, 50, 0]
    assert job.part(2)[0] == "tok_200"


def test_a_slice_takes_parts_until_its_time_is_over(begin):
    """At least one. So it keeps other writers of SQLite waiting for less than they wait."""
    job = begin(ids=[f"tok_{n}" for n in range(450)])
    clock = iter([0.0, 0.2, 0.4, 0.6]).__next__

    assert [ids[0] for ids in run.parts_in_time(job, clock)] == ["tok_0", "tok_100", "tok_200"]
    assert (job.done, job.position, run.has_more_parts(job)) == (300, {"part": 3}, True)
    slow = iter([0.0, 9.0]).__next__
    assert [ids[0] for ids in run.parts_in_time(job, slow)] == ["tok_300"]
    assert [ids[0] for ids in run.parts_in_time(job)] == ["tok_400"]
    assert (job.done, run.has_more_parts(job)) == (450, False)
    assert list(run.parts_in_time(job)) == []


def test_old_jobs_are_deleted(begin):
    """Those that ended over a month ago."""
    month = timezone.now() - timedelta(days=31)
    begin("Old", state="done", ended_at=month, ids=["tok_1"])
    begin("Running since then", created_at=month)
    begin("New", state="done", ended_at=timezone.now())

    assert tasks.prune_jobs() == 1
    assert not Job.objects.filter(title="Old").exists()


def test_a_worker_knows_all_kinds(run_python):
    """Also those that only REST starts, whose rooms a worker does not import by itself."""
    names = {"apply", "batch", "overrides", "project deletion", "replay", "tokens"}
    worker = run_python(
        "from controlplane.operations.jobs import tasks\n"
        "from controlplane.operations.jobs.kinds import kind_of\n"
        "from controlplane.operations.jobs.models import Job\n"
        f"assert all(kind_of(Job(kind=name)) for name in {sorted(names)})\n"
        "from controlplane.web.restkit.batches.jobs import _views\n"
        "assert sorted(_views) == ['policies.override', 'policies.policy', 'projects.project'], _views"
    )

    assert worker.wait(180) == 0
    assert kinds.kind_of(Job(kind="batch"))
    assert kinds._kinds.keys() == names


@pytest.mark.parametrize("person", [{}, {"is_active": False}, {"is_staff": False}], ids=["gone", "inactive", "guest"])
def test_a_job_whose_projects_are_gone_ends_with_its_author(begin, person):
    """None to look at must not stand for each of them being his own."""
    user = UserFactory(username="ann", **{"is_superuser": True, "is_staff": True, **person})
    job = begin(user=user)
    if not person:
        user.delete()
        job.refresh_from_db()

    with pytest.raises(ValidationError, match="ann may not change anything any more"):
        check_author(job)


def test_a_job_without_projects_ends_with_its_key(begin, key):
    """While the key is live, it may go on."""
    job = begin(key=key)
    check_author(job, scope="projects:write")
    key.revoke(timezone.now())

    with pytest.raises(ValidationError, match="may not change anything any more"):
        check_author(job, scope="projects:write")
