"""Actions on jobs. Admin and API call this with an open change."""

from django.core.exceptions import ValidationError

from controlplane.changes.change.transaction import Actor, OpenChange
from controlplane.objects.people.roles import EDITOR
from controlplane.objects.people.scope import projects_of
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job


def cancel_job(tx: OpenChange, job: Job) -> bool:
    """Cancel a job with an audit entry, and return whether it did. A job that has ended stays as it is."""
    before = job.as_record()
    cancelled = run.cancel(job)
    if cancelled:
        tx.record("job.cancel", job, before=before, after=job.as_record())
    return cancelled


def author_of(job: Job) -> Actor:
    """Return the author of the changes that the slices of a job make, which is whoever started it."""
    return Actor(job.created_by, job.channel, job.request_id)


def check_author(job: Job, role: str = EDITOR, scope: str = "") -> None:
    """
    Do nothing if whoever started the job may still change rows of all projects that it concerns, of which may be none.

    Args:
        role: The least role that a user needs in each of them.
        scope: The scope that a management key needs. No key may do a job without one.
    Raises:
        ValidationError: The user or the key is gone, or may do less now.
    """
    concerned, key = job.projects.order_by("slug"), job.key
    lost: object
    if job.user is not None and job.user.is_staff and job.user.is_active:
        lost = concerned.exclude(pk__in=projects_of(job.user, role).values("pk")).first()
    elif scope and key is not None and key.is_live and key.allows(scope):
        lost = None if key.all_projects else concerned.exclude(pk__in=key.projects.values("pk")).first()
    else:
        lost = concerned.first() or "anything"
    if lost:
        raise ValidationError(f"{job.created_by} may not change {lost} any more. What was done until then stays done.")
