"""The creation of many objects by one request, all of them or none, with one publication."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.db.models import Model
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.api.fields import ReferenceField
from controlplane.api.problems import Conflict, Problem, model_errors
from controlplane.api.serializers import StrictSerializer
from controlplane.publishing.changes import BrokenRules, Change

MOST_ITEMS = 1000
ITEMS, RESULTS = "items", "results"
ADDRESS = "batch"
# What the address of a batch does for an object whose slug is the last part of that address.
_OF_ONE = {"get": "retrieve", "put": "update", "patch": "partial_update", "delete": "destroy"}


class TooManyItems(Problem):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "too_many_items"


def batch_of(item: type[serializers.Serializer], shown: type[serializers.Serializer]) -> Any:
    """
    Return a decorator of a view that describes its batch.

    Args:
        item: Reads one item of the body.
        shown: Writes one object of the response.
    """
    name = item.__name__.removesuffix("Serializer").removesuffix("Item")
    items = item(many=True, allow_empty=False, max_length=MOST_ITEMS, help_text=f"At most {MOST_ITEMS:,}.")
    body = type(f"{name}BatchSerializer", (StrictSerializer,), {ITEMS: items})
    results = shown(many=True, help_text="In the order of the items.")
    response = type(f"{name}BatchDoneSerializer", (serializers.Serializer,), {RESULTS: results})

    def describe(view: type) -> type:
        view.batch_body, view.batch_response = body, response
        return extend_schema_view(batch=extend_schema(request=body, responses={201: response}))(view)

    return describe


@contextmanager
def of_items() -> Iterator[None]:
    """Raise the rules of models that the block breaks as errors of the items."""
    try:
        yield
    except BrokenRules as exc:
        raise ValidationError({ITEMS: {place: model_errors(broken) for place, broken in exc.by_place.items()}}) from exc


class Batched:
    """
    The action of a resource that creates many objects at once.

    Attributes:
        unique: The field in which no two items may be equal, or "" if there is none.
    """

    unique = ""
    batch_body: type[StrictSerializer]
    batch_response: type[serializers.Serializer]

    @action(detail=False, methods=["post"], url_path=ADDRESS)
    def batch(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Create up to 1,000 objects in one change with one publication.

        If an item is not valid, nothing is created, and `errors` names each wrong item by its place, as in
        `#/items/3/name`.
        """
        with self.change() as tx:
            rows = self.save_batch(tx, self._read_batch())
            response = self.batch_response({RESULTS: rows}, context=self.get_serializer_context())
            return Response(response.data, status.HTTP_201_CREATED)

    def save_batch(self, tx: Change, items: Sequence[dict[str, Any]]) -> list[Model]:
        """Save the objects with their audit entries, and return them as they were written, in order."""
        raise NotImplementedError

    def check_free(self, items: Sequence[dict[str, Any]]) -> None:
        """Raise ValidationError for each item whose unique field has a value that is taken."""
        name, model = self.unique, self.serializer_class.Meta.model
        taken = model.objects.filter(**{f"{name}__in": [item[name] for item in items]}).values_list(name, flat=True)
        found = set(taken)
        self._refuse([place for place, item in enumerate(items) if item[name] in found], "Is taken already.")

    def _refuse(self, places: Sequence[int], why: str) -> None:
        if places:
            error = [ErrorDetail(why, code="unique")]
            raise ValidationError({ITEMS: {place: {self.unique: error} for place in places}})

    def all_as_written(self, rows: Sequence[Model]) -> list[Model]:
        """Return what ``as_written()`` returns for each row, with few statements."""
        found = self.get_queryset().in_bulk([row.pk for row in rows])
        if len(found) < len(rows):
            raise Conflict
        return [found[row.pk] for row in rows]

    def _read_batch(self) -> list[dict[str, Any]]:
        data = self.request.data
        items = data.get(ITEMS) if isinstance(data, Mapping) else None
        if isinstance(items, list) and len(items) > MOST_ITEMS:
            raise TooManyItems(f"The body must have at most {MOST_ITEMS:,} items, got {len(items):,}.")
        body = self.batch_body(data=data, context={**self.get_serializer_context(), "known": {}})
        self._look_up(body, items)
        body.is_valid(raise_exception=True)
        values = body.validated_data[ITEMS]
        if self.unique:
            self._refuse(_twins([value[self.unique] for value in values]), "Must not be that of another item.")
        return values

    @staticmethod
    def _look_up(body: StrictSerializer, items: Any) -> None:
        """Find all rows that the items name, so that reading an item needs no statement."""
        objects = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
        for name, field in body.fields[ITEMS].child.fields.items():
            if isinstance(field, ReferenceField) and not field.read_only:
                field.look_up(item[name] for item in objects if isinstance(item.get(name), str))

    def http_method_not_allowed(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Answer for the object whose slug is "batch", if there is one, as it has the address of the batch."""
        if kwargs or self.action_map != {"post": ADDRESS} or not re.fullmatch(self.lookup_value_regex, ADDRESS):
            return super().http_method_not_allowed(request, *args, **kwargs)
        one = type(self).as_view({method: name for method, name in _OF_ONE.items() if hasattr(self, name)})
        return one(request._request, **{self.lookup_field: ADDRESS})


def _twins(values: Sequence[Any]) -> list[int]:
    """Return the place of each value that occurred before."""
    seen: set[Any] = set()
    return [number for number, value in enumerate(values) if value in seen or seen.add(value)]
