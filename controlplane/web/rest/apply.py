"""The REST resource that applies policy files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from django.db.models import ProtectedError, RestrictedError
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings

from controlplane.changes.change.transaction import BrokenRules, OpenChange, change
from controlplane.changes.words.change import Change, ObjectChange
from controlplane.changes.words.words import lines_in_full
from controlplane.core.text import PRINTABLE
from controlplane.objects.policies.models import Policy
from controlplane.objects.policies.names import Names
from controlplane.operations.jobs.actions import author_of
from controlplane.operations.jobs.kinds import FailedWithResult, kind
from controlplane.operations.jobs.models import Job
from controlplane.releases.apply.wanted import ApplyOptions, WantedPlan, wanted_by
from controlplane.releases.publishing.publisher import last_revision
from controlplane.releases.publishing.writing import write
from controlplane.releases.review.reviews import review_of
from controlplane.traffic.usage import units
from controlplane.web.rest.preview import visible_to
from controlplane.web.rest.review import ReviewSerializer, previewed
from controlplane.web.rest.revisions import LinesField, StepSerializer
from controlplane.web.restkit.authentication import Access, InsufficientScope, LimitedKey
from controlplane.web.restkit.batches.views import TooManyItems
from controlplane.web.restkit.fields import StrictBooleanField, StrictIntegerField, StringField
from controlplane.web.restkit.problems import Conflict, InvalidQuery, Problem, errors_of, model_errors, translated
from controlplane.web.restkit.serializers import StrictSerializer
from controlplane.web.restkit.views import ApiView
from controlplane.web.restkit.writes.later import Later
from controlplane.web.restkit.writes.started import JobSerializer, access_of, started
from controlplane.web.restkit.writes.trials import MOST_LISTED, Trial, TrialSerializer
from enforcement.policy_files.clashes import clashes
from enforcement.policy_files.policy_file import PolicyFile, from_source
from enforcement.policy_files.schema import ADDRESS as FILE_SCHEMA
from enforcement.policy_files.source import MAX_BYTES, FileSource, InvalidFile, InvalidFiles, Path

MOST_FILES = 100
# A preview of each takes as long as a few statements of the largest tables.
MOST_REVIEWED = 20
FILES = "files"
SCOPES = {"project": "projects:write", "policy": "policies:write", "override": "overrides:write"}
FOR_OPERATORS = "This key is limited to projects, and may not change this."
ACTIONS = ("create", "update", "delete")
MOST_CHANGED = 10_000
# A job makes them in one transaction, which has to end before the time limit of a task does.
MOST_IN_A_JOB = 20_000
JOB = "apply"
BY_A_JOB = f"More than {MOST_CHANGED:,} objects change, which a job does. A dry run compares them, and tries none."
NO_WAIT = f"Must not be given if more than {MOST_CHANGED:,} objects change, because a job does it after the response."
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
class PolicyFileField(serializers.Field):
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
    files = serializers.ListField(child=PolicyFileField(), allow_empty=False, max_length=MOST_FILES)
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


class _ForAJob(Exception):
    """Raised to undo a change that is too large for one request."""


class ApplyView(ApiView):
    """Policy files, which are applied as one change."""

    serializer_class = ApplySerializer
    trials = {"apply": ApplyTrialSerializer}
    scopes = {"apply": "policies:read"}
    conditional = False
    most_bytes = MAX_BYTES
    plan: WantedPlan | None = None

    @extend_schema(responses={200: AppliedSerializer, 202: JobSerializer})
    def apply(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Change what policy files describe to what they say, all of it or nothing, in one change with one publication.

        Each object that changes needs the scope of its own address, as `policies:write` does for a policy. A file of a
        project needs `projects:read` too, and one that names tokens `tokens:read`. An error names its place, as in
        `#/files/0/policies/3/limits/1/burst`. To make exactly what a dry run showed, send its `state`.

        If more than 10,000 objects change, the response is 202 with a job, which makes all of them or none. Its
        `result` has `changed`, `counts`, `stays` and `warnings`, or the `code` of the problem and the `errors`.
        """
        asked = self.read_body().validated_data
        files = _read(asked[FILES])
        try:
            with self.change() as tx:
                self.plan, stays = _planned(files, asked, self.access, is_tried=self.query["dry_run"])
                if len(self.plan.change.objects) > MOST_CHANGED:
                    raise _ForAJob
                body = _made(tx, files, self.plan, stays)
        except _ForAJob:
            return self._by_a_job(asked, stays)
        return Later(lambda: {**body, "revision": tx.revision})

    def _by_a_job(self, asked: Mapping[str, Any], stays: Sequence[str]) -> Response:
        assert self.plan is not None
        total = len(self.plan.change.objects)
        if total > MOST_IN_A_JOB:
            raise TooManyItems(f"At most {MOST_IN_A_JOB:,} objects may change, got {total:,}.")
        if self.query["dry_run"]:
            return Response(_body(self.plan, [*stays, BY_A_JOB]), status.HTTP_202_ACCEPTED)
        if "wait" in self.query:
            raise InvalidQuery({"wait": [ErrorDetail(NO_WAIT, code="rule")]})
        title = f"Apply policy files, which changes {total:,} objects"
        arguments = {name: value for name, value in asked.items() if name != FILES}
        return started(self.request, self.access, JOB, title, asked[FILES], arguments, total=total)

    def review(self, tried: Trial) -> dict[str, Any]:
        assert self.plan is not None
        first = self.plan.change.objects[:MOST_SHOWN]
        reviewed = [one for one in first if _is_reviewed(one) and _may_write(self.access, one)][:MOST_REVIEWED]
        reviews = {one.pk: self._review_of(one) for one in reviewed}
        objects = [{**one, "review": reviews.get(one["id"])} for one in tried.result["objects"]]
        # A dry run of what a job will do only compares, and leaves no entries that could be counted.
        changed = tried.result["changed"] if tried.status == status.HTTP_202_ACCEPTED else tried.changed
        return {"changed": changed, "result": {**tried.result, "objects": objects}}

    def _review_of(self, one: ObjectChange) -> dict[str, Any]:
        policy = Policy.objects.get(pk=one.pk)
        return previewed(review_of(policy, one, visible_to(self.access)), self.access)


@kind(JOB)
def apply_in_a_job(job: Job) -> bool:
    """
    Make the whole change of a job in this one slice, and return True.

    Raises:
        django.core.exceptions.ValidationError: The key may not do that any more.
        FailedWithResult: Something was changed since, or the files break a rule. Nothing was changed.
    """
    try:
        files = _read(job.part(0))
        with change(actor=author_of(job), reason=job.reason) as tx:
            plan, stays = _planned(files, job.arguments, access_of(job, "policies:read"), is_tried=False)
            body = _made(tx, files, plan, stays)
    except ValidationError as exc:
        errors = errors_of(exc.detail)
        message = f"{errors[0]['pointer']}: {errors[0]['detail']} Nothing was changed."
        raise FailedWithResult(message, {"code": "validation_error", "errors": errors[:MOST_LISTED]}) from exc
    except (Problem, RestrictedError, ProtectedError) as exc:
        problem = translated(exc)
        assert problem is not None
        raise FailedWithResult(str(problem.detail), {"code": problem.get_codes()}) from exc
    # Without the objects: whoever may read jobs may not read policies for that.
    job.done, job.result = job.total, {name: body[name] for name in ("state", "changed", "counts", "stays", "warnings")}
    return True


def _planned(
    files: Sequence[PolicyFile], asked: Mapping[str, Any], access: Access, *, is_tried: bool
) -> tuple[WantedPlan, list[str]]:
    """
    Return what files change now, and what the key may not change of it, in sentences.

    Raises:
        ValidationError: The files break a rule, which its place in the body tells.
        PlanChanged: The state, or the newest revision, is not what the request says.
        InsufficientScope, LimitedKey
    """
    _check_reading(files, access)
    with _errors_of(files):
        plan = wanted_by(files, ApplyOptions(**asked.get("options", {})), access, timezone.now())
    _check_state(plan, asked)
    return plan, _check_writing(plan.change, access, is_tried=is_tried)


def _made(tx: OpenChange, files: Sequence[PolicyFile], plan: WantedPlan, stays: Sequence[str]) -> dict[str, Any]:
    """Make what a plan says, and return the body of the response, without the revision."""
    with _errors_of(files, plan):
        write(tx, plan.change)
    return _body(plan, stays)


def _check_reading(files: Sequence[PolicyFile], access: Access) -> None:
    """Raise InsufficientScope if the key may not read what the files are about."""
    needed = {"projects:read": any(file.project for file in files)}
    needed |= {"tokens:read": any(file.token_overrides for file in files)}
    for scope, is_needed in needed.items():
        if is_needed and not access.key.allows(scope):
            raise InsufficientScope(scope)


def _check_state(plan: WantedPlan, asked: Mapping[str, Any]) -> None:
    """Raise PlanChanged unless the state, or the newest revision, is what the request says."""
    if asked.get("state", plan.state) != plan.state:
        raise PlanChanged(plan.state)
    newest = last_revision()
    if asked.get("base", newest) != newest:
        rule = f"The newest revision must be {asked['base']}, and is {newest}. Nothing was done."
        raise PlanChanged(plan.state, rule)


def _check_writing(wanted: Change, access: Access, *, is_tried: bool) -> list[str]:
    """
    Raise a problem if the key may not change an object. A dry run only says so, in the sentences that are returned.

    Raises:
        LimitedKey: Also in a dry run, which would else say what there is in other projects.
        InsufficientScope
    """
    for one in wanted.objects:
        if not access.owns(one.project):
            raise LimitedKey(f"{one.title}: {FOR_OPERATORS}")
    refused = [InsufficientScope(SCOPES[one.kind], one.title) for one in wanted.objects if not _may_write(access, one)]
    if refused and not is_tried:
        raise refused[0]
    return [str(problem.detail) for problem in refused[:MOST_LISTED]]


def _may_write(access: Access, one: ObjectChange) -> bool:
    return access.key.allows(SCOPES[one.kind])


def _is_reviewed(one: ObjectChange) -> bool:
    """Return whether a change is that of a policy, and of more than its mark."""
    is_changed = one.kind == "policy" and one.action == "update"
    return is_changed and any(difference.path != ("managed_by",) for difference in one.differences)


def _read(values: Sequence[Any]) -> list[PolicyFile]:
    """Return what policy files say, or raise ValidationError with all that is wrong in them."""
    files, errors = [], []
    for index, one in enumerate(values):
        try:
            files.append(from_source(FileSource(f"#/{FILES}/{index}", one)))
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
def _errors_of(files: Sequence[PolicyFile], plan: WantedPlan | None = None) -> Iterator[None]:
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


def _body(plan: WantedPlan, stays: Sequence[str]) -> dict[str, Any]:
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
