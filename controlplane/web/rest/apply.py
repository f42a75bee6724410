"""The REST resource that applies policy files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings

from controlplane.changes.change.transaction import BrokenRules
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.words import lines_in_full
from controlplane.core.text import PRINTABLE
from controlplane.objects.policies.models import Policy
from controlplane.objects.policies.names import Names
from controlplane.releases.apply.wanted import Options, Plan, wanted_by
from controlplane.releases.publishing.publisher import last_revision
from controlplane.releases.publishing.writing import write
from controlplane.releases.review.reviews import review_of
from controlplane.traffic.usage import units
from controlplane.web.rest.preview import visible_to
from controlplane.web.rest.review import ReviewSerializer, previewed
from controlplane.web.rest.revisions import LinesField, StepSerializer
from controlplane.web.restkit.authentication import InsufficientScope, LimitedKey
from controlplane.web.restkit.fields import StrictBooleanField, StrictIntegerField, StringField
from controlplane.web.restkit.problems import Conflict, model_errors
from controlplane.web.restkit.serializers import StrictSerializer
from controlplane.web.restkit.views import ApiView
from controlplane.web.restkit.writes.batches import TooManyItems
from controlplane.web.restkit.writes.later import Later
from controlplane.web.restkit.writes.trials import MOST_LISTED, Trial, TrialSerializer
from enforcement.policy_files.clashes import clashes
from enforcement.policy_files.policy_file import PolicyFile, from_source
from enforcement.policy_files.schema import ADDRESS as FILE_SCHEMA
from enforcement.policy_files.source import MAX_BYTES, InvalidFile, InvalidFiles, Path, Source

MOST_FILES = 100
# A preview of each takes as long as a few statements of the largest tables.
MOST_REVIEWED = 20
FILES = "files"
SCOPES = {"project": "projects:write", "policy": "policies:write", "override": "overrides:write"}
FOR_OPERATORS = "This key is limited to projects, and may not change this."
ACTIONS = ("create", "update", "delete")
MOST_CHANGED = 10_000
# Objects that a response lists. People read a plan before they apply it.
MOST_SHOWN = 1_000


@extend_schema_field(
    {
        "type": "object",
        "additionalProperties": True,
        "required": ["apiVersion"],
        "description": f"A policy file as JSON. Its schema is at {FILE_SCHEMA}.",
        "example": {"apiVersion": "sluicegate/v1", "project": {"slug": "chat"}, "policies": []},
    }
)
class FileField(serializers.Field):
    """A policy file, which is read with its places."""

    def to_internal_value(self, data: Any) -> Any:
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class OptionsSerializer(StrictSerializer):
    managed_by = StringField(
        default="",
        allow_blank=True,
        max_length=200,
        validators=[PRINTABLE],
        help_text="Where the files are, which marks their objects. If empty, nothing is marked.",
    )
    renames_mark = StrictBooleanField(default=False, help_text="Whether objects with another mark get this one.")
    prune = StrictBooleanField(
        default=False, help_text="Whether policies are deleted that were managed from files and are in none of these."
    )
    prune_overrides = StrictBooleanField(
        default=False,
        help_text="Whether overrides that are not in the files are deleted. Those of tokens only if a file has some.",
    )


class ApplySerializer(StrictSerializer):
    files = serializers.ListField(child=FileField(), allow_empty=False, max_length=MOST_FILES)
    options = OptionsSerializer(required=False)
    state = StringField(
        required=False,
        max_length=32,
        help_text="The `state` of a response to dry_run=true. Nothing is changed if another one is present.",
    )
    base = StrictIntegerField(
        required=False,
        min_value=0,
        help_text="Nothing is changed unless this is the newest revision. 0: there is none yet.",
    )


class ObjectSerializer(StepSerializer):
    action = serializers.ChoiceField(ACTIONS)
    changes = LinesField(lines_in_full, source="*", help_text="Of a new object, its fields with unusual values.")
    review = ReviewSerializer(
        allow_null=True,
        default=None,
        help_text=f"Only of the first {MOST_REVIEWED} policies that a dry run would change, else null.",
    )


class CountsSerializer(serializers.Serializer):
    created = serializers.IntegerField()
    updated = serializers.IntegerField()
    deleted = serializers.IntegerField()


class PolicyWarningSerializer(serializers.Serializer):
    policy = serializers.CharField(help_text="Slug of the policy.")
    limit = serializers.CharField()
    field = serializers.CharField(help_text="The field of the limit, for example unit.")
    message = serializers.CharField(help_text="What may be a mistake, in words.")


class AppliedSerializer(serializers.Serializer):
    state = serializers.CharField(help_text="Names the state that was found, before the change.")
    revision = serializers.IntegerField(
        allow_null=True, help_text="The new revision. Null if it is pending, or if nothing was changed."
    )
    changed = serializers.IntegerField(help_text="Objects that are changed. 0: all was as the files say.")
    counts = CountsSerializer(help_text="Their number by action.")
    objects = ObjectSerializer(many=True, help_text=f"The first {MOST_SHOWN:,} of them.")
    stays = serializers.ListField(
        child=serializers.CharField(), help_text="What stays as it is although it is in no file, in sentences."
    )
    warnings = PolicyWarningSerializer(many=True, help_text=f"The first {MOST_LISTED}, which are no errors.")


class ApplyTrialSerializer(TrialSerializer):
    def get_fields(self) -> dict[str, serializers.Field]:
        return {**super().get_fields(), "result": AppliedSerializer(help_text="The body without dry_run.")}


class PlanChanged(Conflict):
    """Raised if a plan was made for another state. The response has the present one."""

    default_detail = "Something was changed after the plan was made, so that nothing was done. Make a new plan."
    default_code = "plan_changed"

    def __init__(self, state: str, detail: str = "") -> None:
        super().__init__(detail)
        self.members = {"state": state}


class ApplyView(ApiView):
    """Policy files, which are applied as one change."""

    serializer_class = ApplySerializer
    trials = {"apply": ApplyTrialSerializer}
    scopes = {"apply": "policies:read"}
    conditional = False
    most_bytes = MAX_BYTES
    plan: Plan | None = None

    @extend_schema(responses=AppliedSerializer)
    def apply(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Change what policy files describe to what they say, all of it or nothing, in one change with one publication.

        Each object that changes needs the scope of its own address, as `policies:write` does for a policy. A file of a
        project needs `projects:read` too, and one that names tokens `tokens:read`. An error names its place, as in
        `#/files/0/policies/3/limits/1/burst`. To make exactly what a dry run showed, send its `state`.
        """
        asked = self.read_body().validated_data
        files = _read(asked["files"])
        self._check_reading(files)
        with self.change() as tx:
            with _errors_of(files):
                plan = wanted_by(files, Options(**asked.get("options", {})), self.access, timezone.now())
            self._check_state(plan, asked)
            stays = self._check_writing(plan.change)
            if len(plan.change.objects) > MOST_CHANGED:
                raise TooManyItems(f"At most {MOST_CHANGED:,} objects may change, got {len(plan.change.objects):,}.")
            with _errors_of(files, plan):
                write(tx, plan.change)
            self.plan, body = plan, _body(plan, stays)
        return Later(lambda: {**body, "revision": tx.revision})

    def _check_reading(self, files: Sequence[PolicyFile]) -> None:
        """Raise InsufficientScope if the key may not read what the files are about."""
        needed = {"projects:read": any(file.project for file in files)}
        needed |= {"tokens:read": any(file.token_overrides for file in files)}
        for scope, is_needed in needed.items():
            if is_needed and not self.access.key.allows(scope):
                raise InsufficientScope(scope)

    def _check_state(self, plan: Plan, asked: Mapping[str, Any]) -> None:
        """Raise PlanChanged unless the state, or the newest revision, is what the request says."""
        if asked.get("state", plan.state) != plan.state:
            raise PlanChanged(plan.state)
        newest = last_revision()
        if asked.get("base", newest) != newest:
            rule = f"The newest revision must be {asked['base']}, and is {newest}. Nothing was done."
            raise PlanChanged(plan.state, rule)

    def _check_writing(self, change: Change) -> list[str]:
        """
        Raise a problem if the key may not change an object. A dry run only says so, in the sentences that are returned.

        Raises:
            LimitedKey: Also in a dry run, which would else say what there is in other projects.
            InsufficientScope
        """
        for one in change.objects:
            if not self.access.owns(one.project):
                raise LimitedKey(f"{one.title}: {FOR_OPERATORS}")
        refused = [InsufficientScope(SCOPES[one.kind], one.title) for one in change.objects if not self._may_write(one)]
        if refused and not self.query["dry_run"]:
            raise refused[0]
        return [str(problem.detail) for problem in refused[:MOST_LISTED]]

    def _may_write(self, one: ObjectChange) -> bool:
        return self.access.key.allows(SCOPES[one.kind])

    def review(self, tried: Trial) -> dict[str, Any]:
        assert self.plan is not None
        changed = [one for one in self.plan.change.objects[:MOST_SHOWN] if _is_reviewed(one) and self._may_write(one)]
        reviews = {one.pk: self._review_of(one) for one in changed[:MOST_REVIEWED]}
        objects = [{**shown, "review": reviews.get(shown["id"])} for shown in tried.result["objects"]]
        return {"result": {**tried.result, "objects": objects}}

    def _review_of(self, one: ObjectChange) -> dict[str, Any]:
        policy = Policy.objects.get(pk=one.pk)
        review = review_of(policy, one.before or {}, one.after or {}, visible_to(self.access))
        return previewed(review, self.access, one.after)


def _is_reviewed(one: ObjectChange) -> bool:
    """Return whether a change is that of a policy, and of more than its mark."""
    is_changed = one.kind == "policy" and one.action == "update"
    return is_changed and any(difference.path != ("managed_by",) for difference in one.differences)


def _read(values: Sequence[Any]) -> list[PolicyFile]:
    """Return what policy files say, or raise ValidationError with all that is wrong in them."""
    files, errors = [], []
    for index, one in enumerate(values):
        try:
            files.append(from_source(Source(f"#/{FILES}/{index}", one)))
        except InvalidFiles as exc:
            errors += exc.errors
    errors += clashes(files)
    if errors:
        raise _invalid((_path_of(error), error.reason, "invalid") for error in errors)
    return files


def _path_of(error: InvalidFile) -> Path:
    """Return the path of an error in the body."""
    return FILES, int(error.file.rpartition("/")[2]), *error.path


def _invalid(errors: Iterable[tuple[Path, str, str]]) -> ValidationError:
    """Return the error of paths in the body, each with a reason and a code."""
    found: dict[Any, Any] = {}
    for path, reason, code in errors:
        node = found
        for step in path:
            node = node.setdefault(step, {})
        node.setdefault(api_settings.NON_FIELD_ERRORS_KEY, []).append(ErrorDetail(reason, code=code))
    return ValidationError(found)


@contextmanager
def _errors_of(files: Sequence[PolicyFile], plan: Plan | None = None) -> Iterator[None]:
    """Raise what the block finds wrong as errors of the files. Those of models have the places of a *plan*."""
    try:
        yield
    except InvalidFiles as exc:
        raise _invalid((_path_of(error), error.reason, "rule") for error in exc.errors) from exc
    except BrokenRules as exc:
        assert plan is not None
        errors: list[tuple[Path, str, str]] = []
        for place, broken in exc.by_place.items():
            file, path = plan.places[place]
            for name, details in model_errors(broken).items():
                names = () if name == api_settings.NON_FIELD_ERRORS_KEY else (name,)
                at = (FILES, files.index(file), *path, *names)
                errors += [(at, str(one), one.code or "rule") for one in details]
        raise _invalid(errors) from exc


def _body(plan: Plan, stays: Sequence[str]) -> dict[str, Any]:
    """Return what a plan changed, without its revision."""
    objects = plan.change.objects
    shown = Change(objects[:MOST_SHOWN])
    counts = Counter(one.action for one in objects)
    body = {
        "state": plan.state,
        "revision": None,
        "changed": len(objects),
        "counts": {f"{action}d": counts[action] for action in ACTIONS},
        "objects": shown.objects,
        "stays": [*plan.change.stays, *stays],
        "warnings": list(_warnings(objects)),
    }
    return dict(AppliedSerializer(body, context={"names": Names.of_change(shown)}).data)


def _warnings(objects: Sequence[ObjectChange]) -> Iterator[dict[str, str]]:
    """Yield what may be a mistake in the policies that were created or changed."""
    ids = [one.pk for one in objects if one.kind == "policy" and one.after]
    policies = list(Policy.objects.filter(pk__in=ids).select_related("project").prefetch_related("limits"))
    for at, limit, name, message in islice(units.warnings(policies), MOST_LISTED):
        yield {"policy": policies[at].slug, "limit": limit, "field": name, "message": message}
