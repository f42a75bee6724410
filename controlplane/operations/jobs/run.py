"""
Start, run and cancel jobs.

A slice and its progress are one transaction. Whoever runs a slice has the row of the job locked, so two workers never
run the same slice, and one that is killed leaves the job as it was after the last slice.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

from django.core.exceptions import ValidationError
from django.db import DatabaseError, connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from structlog.contextvars import bound_contextvars

from controlplane.core.tables.digests import digest_of_keys
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs.kinds import FailedWithResult, kind_of
from controlplane.operations.jobs.models import ACTIVE, CANCELLED, DONE, FAILED, RUNNING, Job, JobPart
from enforcement.store.client import STORE_ERRORS

logger = logging.getLogger(__name__)

# Rows in one part. With audit and outbox, they take about a tenth of a second, and half of one on a busy machine.
AT_ONCE = 100
# A slice begins no other part after this time. On SQLite it keeps all writers waiting, who give up after 3 seconds.
SLICE_SECONDS = 0.5
# Between two slices on SQLite. Who waits for its lock looks for it each tenth of a second, and would find it taken.
GIVE_WAY_SECONDS = 0.15
# A task returns after this time, so that other tasks of the worker get their turn. The next run goes on.
TASK_SECONDS = 8.0
# A slice is tried so often in all, each time after this pause.
MOST_FAILURES = 5
RETRY_AFTER = timedelta(seconds=5)
# A slice outside of a transaction takes some seconds on a busy machine.
LEASED = timedelta(seconds=60)
KEPT = timedelta(days=30)
# In the position of a job whose rows are not cut into parts yet: the digest of those that were confirmed.
UNCUT = "uncut"
_PROGRESS = ("state", "position", "done", "total", "failures", "result", "error", "touched_at", "ended_at")


def start(
    kind: str, title: str, *, ids: Iterable[Any] | None = None, projects: Iterable[Project] = (), **fields: Any
) -> Job:
    """
    Save a new job, which a worker begins within seconds, and return it.

    Args:
        kind: A registered kind.
        title: What the job does, in words that begin with a verb.
        ids: The rows that the job treats, as they were confirmed, or JSON that each of them is made of. None: the kind
            finds out by itself.
        projects: The projects that the job concerns.
        fields: Other fields of the job: ``user`` or ``key``, ``created_by``, ``channel``, ``request_id``, ``reason``,
            ``arguments``, ``total``.
    """
    ids = None if ids is None else list(ids)
    with transaction.atomic():
        job = Job.objects.create(kind=kind, title=title[:300], **{"total": len(ids or ()), **fields})
        job.projects.set(projects)
        if ids is not None:
            JobPart.objects.bulk_create(JobPart.cut(job, ids, AT_ONCE), batch_size=50)
    return job


def start_on(
    kind: str, title: str, rows: QuerySet[Any], digest: str, *, projects: Iterable[Project] = (), **fields: Any
) -> Job:
    """
    Save a new job on some rows, of which there may be 100,000, and return it. Its first slice cuts them into parts.

    Args:
        kind: A registered kind that writes.
        rows: What the job treats, as they are now.
        digest: That of the rows that were confirmed. If others come or go before they are taken, the job fails.
        fields: As of :func:`start`, with the ``total``.
    """
    with transaction.atomic():
        job = Job.objects.create(kind=kind, title=title[:300], position={UNCUT: digest}, **fields)
        job.projects.set(projects)
        JobPart.take(job, rows)
    return job


def _cut(job: Job) -> None:
    """
    Cut the rows of a job into parts.

    Raises:
        ValidationError: They are not those that were confirmed.
    """
    ids = sorted(job.part(0))
    if digest_of_keys(ids) != job.position[UNCUT]:
        raise ValidationError("The rows changed while the job was started. Nothing was done. Choose them again.")
    job.parts.all().delete()
    JobPart.objects.bulk_create(JobPart.cut(job, ids, AT_ONCE), batch_size=50)
    job.position = {}


def parts_in_time(job: Job, clock: Callable[[], float] = monotonic) -> Iterator[list[str]]:
    """
    Yield the ids in the next parts of a job, at least those of one, until the time of a slice is over.

    The position and ``done`` of the job are set behind each of them.
    """
    until = clock() + SLICE_SECONDS
    if UNCUT in job.position:
        _cut(job)
    number = job.position.get("part", 0)
    while ids := job.part(number):
        yield ids
        number += 1
        job.done += len(ids)
        job.position = {"part": number}
        if clock() >= until:
            return


def has_more_parts(job: Job) -> bool:
    """Return whether there are parts behind the position of a job."""
    return bool(job.part(job.position.get("part", 0)))


def cancel(job: Job) -> bool:
    """Cancel a job that waits or runs, and return whether it did. What its slices have done until now stays done."""
    now = timezone.now()
    ended = {"state": CANCELLED, "touched_at": now, "ended_at": now}
    with transaction.atomic():
        cancelled = bool(Job.objects.filter(pk=job.pk, state__in=ACTIVE).update(**ended))
        job.refresh_from_db()
        _forget_parts(job)
    return cancelled


def run_all(
    seconds: float = TASK_SECONDS, clock: Callable[[], float] = monotonic, pause: Callable[[float], None] = sleep
) -> int:
    """Run slices of all active jobs by turns for about *seconds*, and return how many ran."""
    until, count = clock() + seconds, 0
    while clock() < until and run_next():
        count += 1
        if connection.vendor == "sqlite":
            pause(GIVE_WAY_SECONDS)
    return count


def run_next() -> bool:
    """Run one slice of the job that has waited longest, and return whether there was one that nobody else runs."""
    job = _due().first()
    if job is None:
        return False  # most runs end here, without a transaction, which on SQLite would block other writers
    kind = kind_of(job)
    if kind is not None and not kind.writes:
        return _run_beside(job)
    with transaction.atomic():
        job = _due().select_for_update(of=("self",), skip_locked=True).first()
        if job is not None:
            _work(job)
            job.save(update_fields=_PROGRESS)
            _forget_parts(job)
    return job is not None


def _forget_parts(job: Job) -> None:
    """Delete the parts of a job that has ended, as the items of a batch are nothing to keep for a month."""
    if not job.is_active:
        job.parts.all().delete()


def _due() -> QuerySet[Job]:
    """Return a query of the jobs that may run now, first the one that has waited longest."""
    ready = Q(failures=0) | Q(touched_at__lt=timezone.now() - RETRY_AFTER)
    return Job.objects.active().filter(ready).order_by("touched_at", "pk")


def _run_beside(job: Job) -> bool:
    """
    Run a slice that changes nothing outside of a transaction, so that it blocks no other writer.

    Nobody else runs it until LEASED is over, after which its worker counts as killed. If two workers run the same slice
    all the same, only the second one saves its progress.
    """
    leased = timezone.now() + LEASED - RETRY_AFTER
    # Counted as a failure until it is over, so that a slice that kills each of its workers ends the job.
    begun = {"state": RUNNING, "failures": job.failures + 1, "touched_at": leased}
    if not Job.objects.active().filter(pk=job.pk, touched_at=job.touched_at).update(**begun):
        return True  # another worker has begun it
    if job.failures < MOST_FAILURES:
        _work(job)
    else:
        job.touched_at = timezone.now()
        _fail(job, "Its worker was killed several times. The log of the server says more.")
    progress = {name: getattr(job, name) for name in _PROGRESS}
    if Job.objects.active().filter(pk=job.pk, touched_at=leased).update(**progress):
        _forget_parts(job)
    return True


def _work(job: Job) -> None:
    """Run one slice of *job*, and set its new state without saving it. Its log lines name who started it."""
    request = {"request_id": job.request_id} if job.request_id else {}
    with bound_contextvars(job=job.pk, actor=job.created_by, channel=job.channel, **request):
        _slice(job)


def _slice(job: Job) -> None:
    job.touched_at, kind = timezone.now(), kind_of(job)
    if kind is None:
        return _fail(job, "This release does not know jobs of this kind.")
    before = deepcopy({name: getattr(job, name) for name in ("position", "done", "total", "result")})
    job.state = RUNNING
    try:
        # A savepoint, because the transaction around it must still be able to save the failure.
        with transaction.atomic() if kind.writes else nullcontext():
            last = kind.work(job)
    except ValidationError as exc:
        _undo(job, before)
        if isinstance(exc, FailedWithResult):
            job.result = exc.result
        return _fail(job, " ".join(exc.messages))
    except (DatabaseError, *STORE_ERRORS) as exc:
        _undo(job, before)
        job.failures += 1
        logger.warning("A slice of the job %s failed: %s", job.pk, exc)
        return _fail(job, "The database or the store failed.") if job.failures >= MOST_FAILURES else None
    except Exception:
        # An error of this program, which would occur again. The other jobs must not wait for this one for ever.
        _undo(job, before)
        logger.exception("The job %s failed", job.pk)
        return _fail(job, "An error of the server. Its log says more.")
    job.failures = 0
    if last:
        job.state, job.ended_at = DONE, job.touched_at
    return None


def _undo(job: Job, before: dict[str, Any]) -> None:
    """Give a job the progress from *before* a slice, of which the database has kept nothing."""
    for name, value in before.items():
        setattr(job, name, value)


def _fail(job: Job, error: str) -> None:
    job.state, job.error, job.ended_at = FAILED, error[:500], job.touched_at


def prune() -> int:
    """Delete the jobs that ended over a month ago, and return their number."""
    old = Job.objects.filter(ended_at__lt=timezone.now() - KEPT)
    return old.delete()[1].get("jobs.Job", 0)
