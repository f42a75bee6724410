"""
The periodic tasks of this app.

A task may run twice, even at the same time. The lock of each job's row makes that harmless.
"""

from celery import shared_task

from controlplane.operations.jobs import run


@shared_task(name="controlplane.jobs.tasks.run_jobs")
def run_jobs() -> int:
    """Run slices of the active jobs for some seconds, and return how many ran."""
    return run.run_all()


@shared_task(name="controlplane.jobs.tasks.prune_jobs")
def prune_jobs() -> int:
    """Delete the jobs that ended over a month ago, and return their number."""
    return run.prune()
