"""The response to a request whose work a job does."""

from django.urls import reverse
from rest_framework import serializers, status
from rest_framework.response import Response

from controlplane.operations.jobs.models import Job
from controlplane.web.restkit.fields import InstantField

# A worker looks for new jobs so often.
RETRY_AFTER_SECONDS = 2


class JobSerializer(serializers.ModelSerializer):
    state = serializers.ChoiceField([name for name, _ in Job.STATES], read_only=True)
    done = serializers.IntegerField(read_only=True, help_text="How much is done.")
    total = serializers.IntegerField(read_only=True, help_text="How much there is to do. 0 while nobody knows.")
    result = serializers.JSONField(read_only=True, help_text="What the job found, by name. It depends on the kind.")
    error = serializers.CharField(read_only=True, help_text="Why the job failed, or an empty string.")
    created_at = InstantField(read_only=True)
    ended_at = InstantField(read_only=True, allow_null=True)

    class Meta:
        model = Job
        fields = ["id", "kind", "title", "state", "done", "total", "result", "error", "created_at", "ended_at"]


def started(job: Job) -> Response:
    """Return a response with a new job, its address, and when to look at it again."""
    headers = {"Location": reverse("job-detail", args=[job.pk]), "Retry-After": str(RETRY_AFTER_SECONDS)}
    return Response(JobSerializer(job).data, status.HTTP_202_ACCEPTED, headers=headers)
