"""The REST resource of jobs."""

from django.db.models import Q, QuerySet
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.operations.jobs.actions import cancel_job
from controlplane.operations.jobs.models import Job
from controlplane.web.restkit.problems import Conflict
from controlplane.web.restkit.serializers import ListQuery
from controlplane.web.restkit.views import Listed, Retrieved
from controlplane.web.restkit.writes.started import JobSerializer

JOB_ID = "job_[0-9a-z]{1,36}"


class JobQuery(ListQuery):
    state = serializers.ChoiceField([name for name, _ in Job.STATES], required=False)
    kind = serializers.CharField(required=False, max_length=40, help_text="For example batch.")


class JobView(Listed[Job], Retrieved[Job]):
    """Work on many rows, which a worker does after the response. A deletion cancels it."""

    serializer_class = JobSerializer
    lookup_field = "id"
    lookup_value_regex = JOB_ID
    ordering = ("-id",)
    conditional = False
    queries = {"list": JobQuery}
    scopes = {"list": "jobs:read", "retrieve": "jobs:read", "destroy": "jobs:cancel"}

    def get_queryset(self) -> QuerySet[Job]:
        """Return the jobs of this key, and of others those that concern only projects which it may see."""
        chosen = Job.objects.filter(**{name: self.query[name] for name in ("state", "kind") if name in self.query})
        if self.access.all_projects:
            return chosen
        own = chosen.within(self.access.projects())
        return own.filter(Q(key=self.access.key) | Q(projects__in=self.access.project_ids)).distinct()

    def destroy(self, request: Request, *args: object, **kwargs: object) -> Response:
        """Cancel the job. What it has done until now stays done."""
        with self.change() as tx:
            cancelled = cancel_job(tx, self.get_object())
        if not cancelled:
            raise Conflict("The job has ended already, so there is nothing to cancel.", "job_ended")
        return Response(status=status.HTTP_204_NO_CONTENT)
