"""
The periodic tasks of this app.

A task may run twice, even at the same time. The lock of each job's row makes that harmless.
"""

from celery import shared_task

# The kinds of jobs that only REST starts, and that a worker must know too.
from controlplane.api.writes import batch_jobs  # noqa: F401
from controlplane.jobs import running
from controlplane.overrides import api as overrides_api  # noqa: F401
from controlplane.policies import api as policies_api  # noqa: F401
from controlplane.projects import api as projects_api  # noqa: F401


@shared_task
def run_jobs() -> int:
    """Run slices of the active jobs for some seconds, and return how many ran."""
    return running.run_all()


@shared_task
def prune_jobs() -> int:
    """Delete the jobs that ended over a month ago, and return their number."""
    return running.prune()
