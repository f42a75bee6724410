"""The REST resource that previews a policy."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.urls import reverse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.words.change import ObjectChange
from controlplane.core.optional import PREVIEW
from controlplane.core.requests import request_id
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project
from controlplane.operations.jobs.replay import start_replay
from controlplane.releases.preview import words
from controlplane.releases.review.reviews import review_of
from controlplane.traffic.callers.kinds import ANONYMOUS, DAY, PROJECT, TOKEN
from controlplane.traffic.callers.recording import KEPT
from controlplane.web.restkit.authentication import Access
from controlplane.web.restkit.fields import InstantField, ReferenceField, StrictBooleanField
from controlplane.web.restkit.schema import example
from controlplane.web.restkit.serializers import StrictSerializer
from controlplane.web.restkit.views import ApiView
from enforcement.model.limits import Limit

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.previews import Affected, Preview


class RangeSerializer(serializers.Serializer):
    low = serializers.IntegerField(help_text="The least that it may be.")
    likely = serializers.IntegerField()
    high = serializers.IntegerField(help_text="The most that it may be.")


class WouldDenySerializer(serializers.Serializer):
    callers = RangeSerializer(help_text="Callers that would have been denied at least once.")
    requests = RangeSerializer(help_text="Requests, at the first try of each.")


class AffectedSerializer(serializers.Serializer):
    token = serializers.CharField(allow_null=True, help_text="Id of the token, or null.")
    project = serializers.CharField(allow_null=True, help_text="Slug of the project that counts together, or null.")
    anonymous = serializers.BooleanField(help_text="Whether it is the project's requests without a token.")
    requests = serializers.IntegerField()
    would_deny = RangeSerializer()
    busiest_minute = serializers.IntegerField(help_text="Requests in its busiest minute.")


class ResolutionSerializer(serializers.Serializer):
    exact = serializers.BooleanField()
    seconds = serializers.IntegerField(help_text="Length of a bin of the replay. 0 if nothing had to be replayed.")
    text = serializers.CharField()


class UnknownSerializer(serializers.Serializer):
    limit = serializers.CharField()
    reason = serializers.CharField(help_text="Why recorded usage cannot judge it. A shadow can.")


class PreviewSerializer(serializers.Serializer):
    summary = serializers.CharField(help_text="The answer in a sentence.")
    to = InstantField(help_text="Until when requests are recorded.")
    concerned = serializers.IntegerField(help_text="Tokens and projects that have the policy.")
    callers = serializers.IntegerField(help_text="Those of them that sent requests.")
    requests = serializers.IntegerField(help_text="Their requests, allowed or denied.")
    would_deny = WouldDenySerializer(allow_null=True, help_text="If null, there is no data, which is not 0.")
    most_affected = AffectedSerializer(many=True, help_text="At most ten.")
    overrides = serializers.IntegerField(help_text="Callers that are judged by their override.")
    resolution = ResolutionSerializer()
    unknown = UnknownSerializer(many=True, help_text="Limits that cannot be judged.")
    cautions = serializers.ListField(child=serializers.CharField(), help_text="What else is not known.")

    def get_fields(self) -> dict[str, serializers.Field]:
        return {**super().get_fields(), "from": InstantField(help_text="Start of the first whole hour.")}


@example(policy="free")
class PreviewQuestionSerializer(StrictSerializer):
    policy = ReferenceField("policies", help_text="Slug of the policy.")
    to = InstantField(required=False, help_text="End of the range, rounded up to a full hour. If left out, now.")
    job = StrictBooleanField(
        default=False,
        help_text="Whether a job replays it, however many callers there are. Its result has the numbers of a preview.",
    )

    def get_fields(self) -> dict[str, serializers.Field]:
        text = "Start of the range, rounded down to a full hour. If left out, 24 hours before its end."
        return {**super().get_fields(), "from": InstantField(required=False, help_text=f"{text} 8 days are kept.")}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        now = timezone.now()
        attrs["to"] = min(attrs.get("to") or now, now)
        attrs["from"] = attrs.get("from") or attrs["to"] - DAY
        if attrs["from"] >= attrs["to"]:
            raise ValidationError({"from": [ErrorDetail("Must be before the end of the range.", code="range")]})
        if attrs["from"] < now - KEPT - timedelta(hours=1):
            raise ValidationError({"from": [ErrorDetail("Must be within the last 8 days.", code="range")]})
        return attrs


class StartedSerializer(serializers.Serializer):
    job = serializers.CharField(help_text="Id of the job, whose result has the numbers once it has ended.")


class PreviewView(ApiView):
    """Preview whom a policy would deny."""

    optional_source = PREVIEW
    scopes = {"preview": "usage:read"}
    serializer_class = PreviewSerializer
    conditional = False
    read_only = True
    starts_jobs = True

    @extend_schema(request=PreviewQuestionSerializer, responses={200: PreviewSerializer, 202: StartedSerializer})
    def preview(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Replay recorded usage, and return whom the limits of a policy would have denied if all of them were enforced.

        Nothing is charged. Requests count at the first try. To preview other limits, send them to the policy with
        `dry_run=true`.
        """
        from controlplane.releases.preview.previews import Recorded  # numpy, which only a preview needs

        body = PreviewQuestionSerializer(data=request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        asked, now = body.validated_data, timezone.now()
        limits = [limit.as_value() for limit in asked["policy"].limits.all()]
        recorded = Recorded(asked["policy"], now, (asked["from"], asked["to"]), visible_to(self.access))
        if asked["job"]:
            return self._as_job(asked["policy"], limits, recorded.preview_of(limits, []))
        return Response(PreviewSerializer(preview_data(recorded.preview(limits))).data)

    def _as_job(self, policy: Policy, limits: list[Limit], known: Preview) -> Response:
        """Start the job, and return its address."""
        seen = visible_to(self.access)
        unchanged = ObjectChange.of(policy, policy.as_record())
        review = replace(review_of(policy, unchanged, seen), preview=known)
        key = self.access.key
        author = {"key": key, "created_by": key.name, "channel": "api", "request_id": request_id(self.request)}
        job = start_replay(review, limits, seen, **author)
        address = reverse("job-detail", args=[job.pk])
        return Response({"job": job.pk}, status.HTTP_202_ACCEPTED, headers={"Location": address})


def visible_to(access: Access) -> frozenset[str] | None:
    """Return the ids of the projects that a key may see, or None for all of them."""
    return None if access.all_projects else access.project_ids


def preview_data(found: Preview, *, shadow: bool = True) -> dict[str, Any]:
    """Return a preview as the values that its serializer writes. *shadow* is as for ``words.sentence``."""
    slugs = dict(Project.objects.filter(pk__in=_ids(found)).values_list("pk", "slug"))
    would_deny = {"callers": found.caught, "requests": found.denied} if found.has_data else None
    return {
        "summary": words.sentence(found, shadow=shadow),
        "from": found.starts,
        "to": found.ends,
        "concerned": found.concerned,
        "callers": found.callers,
        "requests": found.requests,
        "would_deny": would_deny,
        "most_affected": [_affected(one, slugs) for one in found.affected],
        "overrides": found.overrides,
        "resolution": {
            "exact": found.has_data and found.is_exact,
            "seconds": found.step,
            "text": words.resolution(found),
        },
        "unknown": found.unknown,
        "cautions": words.gaps(found),
    }


def _ids(found: Preview) -> list[str]:
    return [pk for kind, pk in (affected.caller for affected in found.affected) if kind in (PROJECT, ANONYMOUS)]


def _affected(one: Affected, slugs: dict[str, str]) -> dict[str, Any]:
    kind, pk = one.caller
    return {
        "token": pk if kind == TOKEN else None,
        "project": slugs.get(pk, pk) if kind in (PROJECT, ANONYMOUS) else None,
        "anonymous": kind == ANONYMOUS,
        "requests": one.requests,
        "would_deny": one.denied,
        "busiest_minute": one.busiest,
    }
