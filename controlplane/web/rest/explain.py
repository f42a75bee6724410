"""The REST resource that explains a decision."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.core.optional import COUNTERS
from controlplane.operations.explain import answer, live_counters, words
from controlplane.operations.explain.answer import Explanation, Line, Source
from controlplane.operations.explain.question import Case, Reach, Unanswerable, of_decision, of_token
from controlplane.releases.publishing.models import Revision
from controlplane.web.restkit.fields import InstantField, StringField
from controlplane.web.restkit.serializers import StrictSerializer
from controlplane.web.restkit.views import ApiView
from enforcement.model.limits import MODES
from enforcement.model.matching import check_attributes, is_label
from enforcement.model.sizes import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTE_NAME_LENGTH, MAX_ATTRIBUTES

RESULTS = ("denied", "also_denied", "would_deny", "passed", "no_match", "unknown")


class AttributesField(serializers.DictField):
    """The attributes of a request by name, within the sizes that enforcers accept."""

    child = StringField(max_length=MAX_ATTRIBUTE_LENGTH, allow_blank=True)

    def to_internal_value(self, data: Any) -> dict[str, str]:
        attributes = super().to_internal_value(data)
        try:
            check_attributes(attributes)
        except ValueError as exc:
            raise ValidationError([ErrorDetail(str(exc).partition(": ")[2].capitalize(), code="rule")]) from exc
        if labels := [name for name in attributes if is_label(name)]:
            message = f"Must not name a label, which the token has, got {labels[0]}."
            raise ValidationError([ErrorDetail(message, code="rule")])
        return attributes


class QuestionSerializer(StrictSerializer):
    decision = StringField(required=False, max_length=200, help_text="Id of a decision, from Sluicegate-Decision.")
    token = StringField(
        required=False,
        max_length=200,
        help_text="Id, prefix, name or secret of a token. A secret is compared by its digest, and kept nowhere.",
    )
    attributes = AttributesField(
        required=False,
        help_text=f"Attributes of the request that are known, such as method and path: at most {MAX_ATTRIBUTES}, with "
        f"names of at most {MAX_ATTRIBUTE_NAME_LENGTH} characters.",
    )
    at = InstantField(required=False, help_text="Time of the request, only with a token. If left out, now.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("decision" in attrs) == ("token" in attrs):
            message = "Exactly one of decision and token must be given."
            raise ValidationError({"decision": [ErrorDetail(message, code="one_of_two")]})
        if "at" in attrs and "decision" in attrs:
            message = "Must be left out with a decision, whose id has the time."
            raise ValidationError({"at": [ErrorDetail(message, code="rule")]})
        if "at" in attrs and attrs["at"] > timezone.now():
            raise ValidationError({"at": [ErrorDetail("Must not be in the future.", code="range")]})
        return attrs


class DecisionSerializer(serializers.Serializer):
    id = serializers.CharField()
    reason = serializers.CharField()
    limit = serializers.CharField(allow_null=True, help_text="policy-slug/limit-name. A long one is cut in front.")

    def get_fields(self) -> dict[str, serializers.Field]:
        return {
            **super().get_fields(),
            "source": serializers.CharField(help_text="Where it was decided, such as store, lease or fallback."),
            "instance": serializers.CharField(allow_null=True, help_text="Null for a key that is limited to projects."),
            "attributes_sampled": serializers.BooleanField(help_text="Whether it is in the sample of denials."),
        }


class OverrideSourceSerializer(serializers.Serializer):
    id = serializers.CharField()
    ends_at = InstantField(allow_null=True)
    reason = serializers.CharField()
    by = serializers.CharField()


class ExplainedLimitSerializer(serializers.Serializer):
    limit = serializers.CharField(help_text="policy-slug/limit-name")
    scope = serializers.ChoiceField(
        ["global", "project", "anonymous", "token"], help_text="Where its policy was attached."
    )
    matches = serializers.ChoiceField(["yes", "no", "unknown"], help_text="Whether it applied to the request.")
    why = serializers.CharField(help_text="Why it did not, or what would have to be known. Else empty.")
    result = serializers.ChoiceField(
        RESULTS,
        help_text="denied: this limit decided. also_denied and would_deny: it denied, or would have denied, requests "
        "in the same minute. passed: it denied none.",
    )
    mode = serializers.ChoiceField(MODES)
    unit = serializers.CharField()
    quota = serializers.IntegerField(help_text="In force then, with the override applied.")
    override = OverrideSourceSerializer(allow_null=True, help_text="The override that set the quota, or null.")
    used = serializers.IntegerField(allow_null=True, help_text="Permits of its window up to the end of that minute.")
    allowed = serializers.IntegerField(allow_null=True, help_text="Requests in that minute, hour or day.")
    denied = serializers.IntegerField(allow_null=True)
    would_deny = serializers.IntegerField(allow_null=True)
    quota_now = serializers.IntegerField(allow_null=True, help_text="If null, it does not apply any more.")
    override_now = OverrideSourceSerializer(allow_null=True)
    used_now = serializers.IntegerField(allow_null=True)
    remaining_now = serializers.IntegerField(allow_null=True)
    reset_ms_now = serializers.IntegerField(allow_null=True)


class UsageAroundSerializer(serializers.Serializer):
    period = serializers.ChoiceField(["minute", "hour", "day"], help_text="The finest one that is still kept.")
    at = InstantField()
    allowed = serializers.IntegerField()
    denied = serializers.IntegerField()
    would_deny = serializers.IntegerField()


class LaterChangeSerializer(serializers.Serializer):
    revision = serializers.IntegerField()
    at = InstantField()


class ExplanationSerializer(serializers.Serializer):
    at = InstantField()
    summary = serializers.CharField(help_text="The answer in a sentence.")
    reply = serializers.CharField(help_text="An answer for the client, without internal names but that of the limit.")
    decision = DecisionSerializer(allow_null=True)
    project = serializers.CharField(allow_null=True, help_text="Slug.")
    token = serializers.CharField(allow_null=True, help_text="Id.")
    attributes = serializers.DictField(child=serializers.CharField())
    limits = ExplainedLimitSerializer(many=True, help_text="All limits of the attached policies, in order.")
    usage = UsageAroundSerializer(allow_null=True, help_text="All decisions about the token. If null, none is kept.")
    passes_now = serializers.BooleanField(allow_null=True, help_text="Null if it cannot be told.")
    blocked_by = serializers.ListField(child=serializers.CharField(), help_text="What would deny it now.")
    store_reachable = serializers.BooleanField()
    revision_then = serializers.IntegerField(help_text="0 if nothing was published.")
    revision_now = serializers.IntegerField()
    documents_unknown = serializers.ListField(
        child=serializers.CharField(), help_text="Documents of that revision that are not kept. Present ones are shown."
    )
    changes = LaterChangeSerializer(many=True, help_text="The first 10 revisions that changed what applies.")
    change_count = serializers.IntegerField()


class ExplainView(ApiView):
    """Explain why a request was denied."""

    optional_source = COUNTERS
    scopes = {"explain": "usage:read"}
    serializer_class = ExplanationSerializer
    conditional = False
    read_only = True

    @extend_schema(request=QuestionSerializer, responses=ExplanationSerializer)
    def explain(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Explain a decision by its id, or what applied to a token at a time.

        Nothing is charged. The quotas are those that were in force then. Documents are kept for 90 days after they
        were replaced, usage by the minute for 48 hours, by the hour for 90 days.
        """
        body = QuestionSerializer(data=request.data, context=self.get_serializer_context())
        body.is_valid(raise_exception=True)
        access, now = self.access, timezone.now()
        reach = Reach(access.projects(), access.tokens(), access.all_projects)
        try:
            case = _case(body.validated_data, reach, now)
        except Unanswerable as exc:
            raise ValidationError({exc.field: [ErrorDetail(exc.reason, code="does_not_exist")]}) from exc
        found = answer.explain(case, reach, now, live_counters.client())
        return Response(ExplanationSerializer(as_data(found, reach)).data)


def _case(asked: dict[str, Any], reach: Reach, now: Any) -> Case:
    attributes = asked.get("attributes", {})
    if "decision" in asked:
        return of_decision(asked["decision"], reach, attributes)
    return of_token(asked["token"], asked.get("at", now), reach, attributes)


def as_data(found: Explanation, reach: Reach) -> dict[str, Any]:
    """Return an explanation as the values that the serializer writes."""
    case = found.case
    around = {"period": found.period.name, "at": found.period.at}
    return {
        "at": case.at,
        "summary": " ".join(filter(None, [words.lead(found), *words.context(found)])),
        "reply": words.reply(found),
        "decision": _decision(case, reach),
        "project": case.project and case.project.slug,
        "token": case.token_id or None,
        "attributes": case.attributes,
        "limits": [_limit(line) for line in found.lines],
        "usage": {**around, **found.total} if found.total else None,
        "passes_now": found.passes_now,
        "blocked_by": found.blocks,
        "store_reachable": not found.store_away,
        "revision_then": case.revision,
        "revision_now": found.revision_now,
        "documents_unknown": found.missing,
        "changes": [_change(revision) for revision in found.changes],
        "change_count": found.change_count,
    }


def _decision(case: Case, reach: Reach) -> dict[str, Any] | None:
    if case.facts is None:
        return None
    return {
        "id": case.decision,
        "reason": case.facts.reason,
        "limit": case.facts.limit or None,
        "source": case.facts.source,
        "instance": case.facts.instance if reach.everything else None,
        "attributes_sampled": case.sample is not None,
    }


def _change(revision: Revision) -> dict[str, Any]:
    return {"revision": revision.number, "at": revision.at}


def _limit(line: Line) -> dict[str, Any]:
    match, counted, now = line.match, line.counted or {}, line.now
    return {
        "limit": match.name,
        "scope": match.scope,
        "matches": match.matches,
        "why": match.why,
        "result": line.result,
        "mode": match.limit.mode,
        "unit": match.limit.unit,
        "quota": match.limit.quota,
        "override": _override(line.source),
        "used": line.used,
        **{name: counted.get(name) for name in ("allowed", "denied", "would_deny")},
        "quota_now": line.quota_now,
        "override_now": _override(line.source_now),
        "used_now": now and now.used,
        "remaining_now": now and now.remaining,
        "reset_ms_now": now and now.reset_ms,
    }


def _override(source: Source | None) -> dict[str, Any] | None:
    if source is None or source.kind != "override":
        return None
    return {"id": source.id, "ends_at": source.ends_at, "reason": source.reason, "by": source.by}
