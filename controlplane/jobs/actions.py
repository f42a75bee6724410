"""What people do to jobs. Admin and API call this with an open change."""

from controlplane.jobs import running
from controlplane.jobs.models import Job
from controlplane.publishing.changes import Actor, Change


def cancel_job(tx: Change, job: Job) -> bool:
    """Cancel a job with an audit entry, and return whether it did. A job that has ended stays as it is."""
    before = job.as_record()
    cancelled = running.cancel(job)
    if cancelled:
        tx.record("job.cancel", job, before=before, after=job.as_record())
    return cancelled


def author_of(job: Job) -> Actor:
    """Return the author of the changes that the slices of a job make, which is whoever started it."""
    return Actor(job.created_by, job.channel, job.request_id)
