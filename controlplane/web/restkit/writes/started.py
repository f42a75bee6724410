"""Requests whose work a job does, for the key that sent them."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import ValidationError as JobError
from django.urls import reverse
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.core.requests import request_id
from controlplane.operations.jobs import run
from controlplane.operations.jobs.models import Job
from controlplane.web.restkit.authentication import Access
from controlplane.web.restkit.fields import InstantField
from controlplane.web.restkit.requests import reason_of

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


def started(
    request: Request,
    access: Access,
    kind: str,
    title: str,
    items: Iterable[Any],
    arguments: Mapping[str, Any],
    **more: Any,
) -> Response:
    """
    Start a job for the key of a request, and return a response with it, its address, and when to look at it again.

    Args:
        items: JSON that the parts of the job are made of.
        arguments: What the kind of job needs. ``reach`` is added, for ``access_of``.
        more: Other fields of the job.
    """
    job = run.start(
        kind,
        title,
        ids=items,
        projects=() if access.all_projects else access.projects(),
        arguments={**arguments, "reach": access.reach},
        key=access.key,
        created_by=access.key.name,
        channel="api",
        request_id=request_id(request),
        reason=reason_of(request),
        **more,
    )
    headers = {"Location": reverse("job-detail", args=[job.pk]), "Retry-After": str(RETRY_AFTER_SECONDS)}
    return Response(JobSerializer(job).data, status.HTTP_202_ACCEPTED, headers=headers)


def access_of(job: Job, scope: str) -> Access:
    """
    Return what the key of a job may see now.

    Args:
        scope: What the key must allow.
    Raises:
        django.core.exceptions.ValidationError: It may do less than when the job was started.
    """
    key = job.key
    if key is not None and key.is_live and key.allows(scope):
        access = Access.of(key)
        if access.covers(job.arguments["reach"]) and not access.reaches_nothing:
            return access
    stays = "What was created until then stays." if job.done else "Nothing was changed."
    raise JobError(f"The key {job.created_by} may not do this any more. {stays}")
