"""The deletion of many overrides, as a job whose slices delete some of them each."""

from django.db.models import Q

from controlplane.changes.change.transaction import change
from controlplane.objects.overrides.models import Override
from controlplane.operations.jobs.actions import author_of, check_author
from controlplane.operations.jobs.kinds import kind
from controlplane.operations.jobs.models import Job
from controlplane.operations.jobs.run import has_more_parts, parts_in_time

JOB = "overrides"
# More overrides than this are deleted by a job, and more than a job may have by none.
MOST_IN_A_REQUEST = 500
MOST_IN_A_JOB = 100_000


@kind(JOB)
def delete_parts(job: Job) -> bool:
    """
    Delete the next parts of the overrides that were confirmed, and return whether these were the last ones.

    Raises:
        ValidationError: Whoever started the job may not do that any more.
    """
    check_author(job)
    deleted = job.result.get("deleted", 0)
    projects = job.projects.all()
    with change(actor=author_of(job), reason=job.reason) as tx:
        for ids in parts_in_time(job):
            concerned = Q(project__in=projects) | Q(token__project__in=projects)
            for override in Override.objects.filter(concerned, pk__in=ids).select_related("limit__policy", "token"):
                tx.delete(override)
                deleted += 1
    job.result = {"deleted": deleted, "left as they were": job.done - deleted}
    return not has_more_parts(job)
