"""The creation of more objects than one change should have, which a job does in slices."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from time import monotonic
from typing import Any, ClassVar

from django.db.models import Model
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.change.transaction import change
from controlplane.operations.jobs import run
from controlplane.operations.jobs.actions import author_of
from controlplane.operations.jobs.kinds import FailedWithResult, kind
from controlplane.operations.jobs.models import Job, JobPart
from controlplane.web.restkit.batches.views import ADDRESS, ITEMS, MOST_ITEMS, TWIN, Batches, TooManyItems, items_of
from controlplane.web.restkit.problems import InvalidQuery, errors_of
from controlplane.web.restkit.writes.started import JobSerializer, access_of, started

JOB = "batch"
MOST_IN_A_JOB = 10_000
# The longest body of a batch, which is 400 bytes an item. A policy with one limit has about 150, with three about 350.
MOST_BYTES = 4 * 1024 * 1024
# Errors in the result of a job, which counts all wrong items.
MOST_LISTED = 100
LATER = f"Must not be given with more than {MOST_ITEMS:,} items, because a job creates them after the response."

Key = tuple[str | None, ...]


class JobBatched[M: Model](Batches[M]):
    """
    The same for a resource whose large batches are created by a job.

    Attributes:
        identity: The fields of an item whose values no other item may have, of which the first one gets the error.
        grouped_by: The fields by which ``check_items`` needs to know how many of the other items are alike.
    """

    most_items = MOST_IN_A_JOB
    most_bytes: int | None = None  # of the body of a batch; other bodies are as long as the settings allow
    about_items = f"At most {MOST_IN_A_JOB:,}. If there are more than {MOST_ITEMS:,}, a job creates them."
    more_responses: ClassVar[dict[int, Any]] = {202: JobSerializer}
    identity: ClassVar[tuple[str, ...]] = ("slug",)
    grouped_by: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _views[cls.model_name()] = cls

    @classmethod
    def model_name(cls) -> str:
        return cls.serializer_class.model_class()._meta.label_lower

    @action(detail=False, methods=["post"], url_path=ADDRESS, most_bytes=MOST_BYTES)
    def batch(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Create up to 1,000 objects in one change with one publication, or up to 10,000 by a job.

        If an item is not valid, nothing is created, and `errors` names each wrong item by its place, as in
        `#/items/3/name`. With more than 1,000 items, the response is 202 with a job, which checks all of them before it
        creates the first. Its `result` has the numbers `checked`, `created` and `invalid`, and the first 100 `errors`,
        and `warnings` of policies.
        """
        items = items_of(request.data)
        if items is None or not MOST_ITEMS < len(items) <= MOST_IN_A_JOB:
            return self.create_all(request)
        if self.query["dry_run"]:
            raise TooManyItems(f"A dry run has at most {MOST_ITEMS:,} items, got {len(items):,}.")
        if "wait" in self.query:
            raise InvalidQuery({"wait": [ErrorDetail(LATER, code="rule")]})
        self.batch_body().check_names(request.data if isinstance(request.data, Mapping) else {})
        return self._start(items)

    def create_at_once(self) -> Response:
        try:
            return super().create_at_once()
        except ValidationError as exc:
            raise self._with_all(exc) from exc

    def _with_all(self, exc: ValidationError) -> ValidationError:
        """Return the error with all that is wrong, as the first rule that some items break hides the next ones."""
        if not isinstance(exc.detail, Mapping) or ITEMS not in exc.detail:
            return exc
        items = items_of(self.request.data) or []
        wrong = _wrong_in(items, type(self), self.get_serializer_context(), Survey.of(items, type(self)))
        by_place = {str(place): errors for place, errors in wrong.items()}
        return ValidationError({**exc.detail, ITEMS: by_place}) if wrong else exc

    def _start(self, items: Sequence[Any]) -> Response:
        title = f"Create {len(items):,} {self.serializer_class.model_class()._meta.verbose_name_plural}"
        return started(self.request, self.access, JOB, title, items, {"model": self.model_name()})

    @classmethod
    def check_items(cls, items: Sequence[dict[str, Any]], others: Mapping[Key, int]) -> None:
        """
        Check what is not checked when items are read, as ``create_items`` will.

        Args:
            others: How many other items of the batch have these values of ``grouped_by``.
        Raises:
            ValidationError: Items could not be created.
        """
        raise NotImplementedError


_views: dict[str, type[JobBatched]] = {}


@kind(JOB)
def create_some(job: Job) -> bool:
    """
    Check the next items of a batch, or create them once all are valid, and return whether all are created.

    Raises:
        django.core.exceptions.ValidationError: The key may not do that any more, or items are not valid.
    """
    view = _views[job.arguments["model"]]
    context = {"access": access_of(job, view.scopes[ADDRESS])}
    return _create(job, view, context) if "valid" in job.position else _check(job, view, context)


def _check(job: Job, view: type[JobBatched], context: Mapping[str, Any]) -> bool:
    until, number = monotonic() + run.SLICE_SECONDS, job.position.get("part", 0)
    result: dict[str, Any] = {"checked": 0, "created": 0, "invalid": 0, "errors": [], **job.result}
    survey = _survey(job.pk, view.model_name())
    while part := job.part(number):
        first = result["checked"]
        found = _wrong_in(part, view, context, survey, first)
        result["invalid"] += len(found)
        places = {first + place: errors for place, errors in found.items()}
        result["errors"] = [*result["errors"], *errors_of({ITEMS: places})][:MOST_LISTED]
        result["checked"] += len(part)
        number += 1
        if monotonic() >= until:
            break
    job.position, job.result = {"part": number}, result
    if result["checked"] == job.total:
        if result["invalid"]:
            are = "item is" if result["invalid"] == 1 else "items are"
            message = f"{result['invalid']:,} {are} not valid, of {job.total:,}. Nothing was created."
            raise FailedWithResult(message, result)
        job.position = {"part": 0, "valid": True}
    return False


@dataclass(frozen=True, slots=True)
class Survey:
    """
    The facts about other items of a batch that an item has to know.

    Attributes:
        first: The place of the first item with these values of ``identity``.
        alike: How many items have these values of ``grouped_by``.
    """

    first: Mapping[Key, int]
    alike: Counter[Key]

    @classmethod
    def of(cls, items: Iterable[Any], view: type[JobBatched]) -> "Survey":
        first: dict[Key, int] = {}
        alike: Counter[Key] = Counter()
        for place, item in enumerate(items):
            first.setdefault(_key(item, view.identity), place)
            alike[_key(item, view.grouped_by)] += 1
        return cls(first, alike)

    def repeats(self, place: int, key: Key) -> bool:
        """Return whether an item at this place has the values of ``identity`` of an earlier one."""
        return bool(key) and key[0] is not None and self.first[key] < place


@lru_cache(maxsize=4)
def _survey(job: str, model: str) -> Survey:
    """Return the survey of all items of a job. They never change, so that a worker reads them once and not a slice."""
    parts = JobPart.objects.filter(job=job).order_by("number").values_list("ids", flat=True)
    return Survey.of(chain.from_iterable(parts.iterator(chunk_size=1)), _views[model])


def _wrong_in(
    items: Sequence[Any], view: type[JobBatched], context: Mapping[str, Any], survey: Survey, first: int = 0
) -> dict[int, Any]:
    """
    Return the errors of items by their places in *items*.

    What is wrong with one item hides nothing of another one. The rules that need sound items are asked of those that
    are left, until nothing is wrong with them.

    Args:
        survey: That of the whole batch.
        first: The place of the first of the items in the batch.
    """
    own = Counter(_key(item, view.grouped_by) for item in items)
    others = {group: survey.alike[group] - count for group, count in own.items()}
    wrong: dict[int, Any] = {}
    left: Sequence[int] = range(len(items))
    while left:
        try:
            values = view.read_items({ITEMS: [items[place] for place in left]}, context)
            view.check_items(values, others)
            break
        except ValidationError as exc:
            found = {left[at]: errors for at, errors in _by_place(exc).items()}
            if not found:
                raise
            wrong |= found
            left = [place for place in left if place not in found]
    for place, item in enumerate(items):
        if survey.repeats(first + place, _key(item, view.identity)):
            wrong.setdefault(place, {view.identity[0]: [ErrorDetail(TWIN, code="unique")]})
    return dict(sorted(wrong.items()))


def _create(job: Job, view: type[JobBatched], context: Mapping[str, Any]) -> bool:
    until, before, number = monotonic() + run.SLICE_SECONDS, job.done, job.position["part"]
    result = {**job.result}
    with change(actor=author_of(job), reason=job.reason) as tx:
        while part := job.part(number):
            try:
                values = view.read_items({ITEMS: part}, context)
                rows = view.create_items(tx, values)
            except ValidationError as exc:
                places = {job.done + place: errors for place, errors in _by_place(exc).items()}
                raise _stopped(job, before, places) from exc
            for name, told in view.told_beside(rows).items():
                placed = [{**one, "item": job.done + one["item"]} for one in told]
                if placed:
                    result[name] = [*result.get(name, ()), *placed][:MOST_LISTED]
            job.done += len(part)
            number += 1
            if monotonic() >= until:
                break
    job.position = {"part": number, "valid": True}
    job.result = {**result, "created": job.done}
    return job.done >= job.total


def _stopped(job: Job, created: int, found: Mapping[int, Any]) -> FailedWithResult:
    """Return the error of items that became invalid after all were checked, as when somebody took their slug."""
    errors = errors_of({ITEMS: found})
    result = {**job.result, "created": created, "invalid": len(found), "errors": errors[:MOST_LISTED]}
    stays = f"{created:,} of {job.total:,} were created before, and stay."
    return FailedWithResult(f"{errors[0]['pointer']}: {errors[0]['detail']} {stays}", result)


def _by_place(exc: ValidationError) -> dict[int, Any]:
    """Return the errors of the items in a part, by place."""
    found = exc.detail[ITEMS] if isinstance(exc.detail, Mapping) else {}
    pairs = found.items() if isinstance(found, Mapping) else enumerate(found)
    return {int(place): errors for place, errors in pairs if errors}


def _key(item: Any, names: Sequence[str]) -> Key:
    """Return the values of an item, as far as they are strings or objects. Others are found when the item is read."""
    values = [item.get(name) for name in names] if isinstance(item, Mapping) else []
    texts = (json.dumps(value, sort_keys=True) if value and isinstance(value, dict) else value for value in values)
    return tuple(text if isinstance(text, str) else None for text in texts)
