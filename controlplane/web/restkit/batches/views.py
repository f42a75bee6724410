"""The creation of many objects by one request, all of them or none, with one publication."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from django.db.models import Model
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.changes.change.transaction import BrokenRules, OpenChange
from controlplane.web.restkit.fields import ReferenceField
from controlplane.web.restkit.problems import Conflict, Problem, model_errors
from controlplane.web.restkit.serializers import CleanModelSerializer, StrictSerializer
from controlplane.web.restkit.views import ApiView

MOST_ITEMS = 1000
ITEMS, RESULTS = "items", "results"
ADDRESS = "batch"
TWIN = "Must not be that of another item."
# The operation of each method on one object, whose slug is the last part of the address.
_OF_ONE = {"get": "retrieve", "put": "update", "patch": "partial_update", "delete": "destroy"}


class TooManyItems(Problem):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "too_many_items"


def batch_of[V: type[Batches]](
    item: type[serializers.Serializer], shown: type[serializers.Serializer], **more: serializers.BaseSerializer
) -> Callable[[V], V]:
    """
    Return a decorator of a view that describes its batch.

    Args:
        item: Reads one item of the body.
        shown: Writes one object of the response.
        more: Fields of the response besides the results, whose values ``told_beside`` returns.
    """
    name = item.__name__.removesuffix("Serializer").removesuffix("Item")
    results = shown(many=True, help_text="In the order of the items.")
    response = type(f"{name}BatchDoneSerializer", (serializers.Serializer,), {RESULTS: results, **more})

    def describe(view: V) -> V:
        items = item.many_init(allow_empty=False, max_length=view.most_items, help_text=view.about_items)
        body = type(f"{name}BatchSerializer", (StrictSerializer,), {ITEMS: items})
        view.batch_body, view.batch_response = body, response
        responses = {201: response, **view.more_responses}
        return extend_schema_view(batch=extend_schema(request=body, responses=responses))(view)

    return describe


@contextmanager
def of_items() -> Iterator[None]:
    """Raise the rules of models that the block breaks as errors of the items."""
    try:
        yield
    except BrokenRules as exc:
        places = {str(place): model_errors(broken) for place, broken in exc.by_place.items()}
        raise ValidationError({ITEMS: places}) from exc


class Batches[M: Model](ApiView[M]):
    """
    A resource of which one request creates many objects.

    Attributes:
        unique: The field in which no two items may be equal, or "" if there is none.
        most_items: How many items a body may have.
        about_items: What the OpenAPI document says of that.
        more_responses: The responses besides the usual one.
    """

    unique = ""
    most_items = MOST_ITEMS
    about_items = f"At most {MOST_ITEMS:,}."
    more_responses: ClassVar[dict[int, type[serializers.Serializer]]] = {}
    batch_body: type[StrictSerializer]
    batch_response: type[serializers.Serializer]
    serializer_class: type[CleanModelSerializer]
    lookup_value_regex: str

    def create_all(self, request: Request) -> Response:
        """Return the response of ``create_at_once``, or raise TooManyItems."""
        items = items_of(request.data)
        if items is not None and len(items) > self.most_items:
            raise TooManyItems(self.too_many(len(items)))
        return self.create_at_once()

    def too_many(self, count: int) -> str:
        """Return why a body with too many items is refused, and what to do instead."""
        return f"The body must have at most {self.most_items:,} items, got {count:,}."

    def create_at_once(self) -> Response:
        """Return the response with what the body of the request asks for, created in one change."""
        with self.change() as tx:
            items = self.read_items(self.request.data, self.get_serializer_context())
            rows = self.save_batch(tx, items)
            body = {RESULTS: rows, **self.told_beside(rows)}
            response = self.batch_response(body, context=self.get_serializer_context())
            return Response(response.data, status.HTTP_201_CREATED)

    @classmethod
    def told_beside(cls, rows: Sequence[M]) -> dict[str, list[Any]]:
        """Return lists of what is said of new objects, with their places, besides the objects."""
        return {}

    def save_batch(self, tx: OpenChange, items: Sequence[dict[str, Any]]) -> list[M]:
        """Save the objects with their audit entries, and return them as they were written, in order."""
        return self.all_as_written(self.create_items(tx, items))

    @classmethod
    def create_items(cls, tx: OpenChange, items: Sequence[dict[str, Any]]) -> list[M]:
        """
        Save the objects with their audit entries, and return them in order.

        Raises:
            ValidationError: Items break rules that are not checked when they are read.
        """
        raise NotImplementedError

    @classmethod
    def check_free(cls, items: Sequence[dict[str, Any]]) -> None:
        """Raise ValidationError for each item whose unique field has a value that is taken."""
        name, model = cls.unique, cls.serializer_class.model_class()
        taken = model._default_manager.filter(**{f"{name}__in": [item[name] for item in items]}).values_list(
            name, flat=True
        )
        found = set(taken)
        refuse([place for place, item in enumerate(items) if item[name] in found], name, "Is taken already.")

    def all_as_written(self, rows: Sequence[M]) -> list[M]:
        """Return what ``as_written()`` returns for each row, with few statements."""
        found = self.get_queryset().in_bulk([row.pk for row in rows])
        if len(found) < len(rows):
            raise Conflict
        return [found[row.pk] for row in rows]

    @classmethod
    def read_items(cls, data: Any, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        """
        Return the values of all items in a body.

        Args:
            context: With the ``access`` of the key.
        Raises:
            ValidationError: The body has another form, items are not valid, or two have one value of the unique field.
        """
        body = cls.batch_body(data=data, context={**context, "known": {}})
        cls._look_up(body, items_of(data) or [])
        body.is_valid(raise_exception=True)
        values = body.validated_data[ITEMS]
        if cls.unique:
            refuse(_twins([value[cls.unique] for value in values]), cls.unique, TWIN)
        return values

    @staticmethod
    def _look_up(body: StrictSerializer, items: Sequence[Any]) -> None:
        """Find all rows that the items name, so that reading an item needs no statement."""
        objects, listed = [item for item in items if isinstance(item, Mapping)], body.fields[ITEMS]
        child = listed.child if isinstance(listed, serializers.ListSerializer) else None
        for name, field in child.fields.items() if isinstance(child, serializers.Serializer) else ():
            if isinstance(field, ReferenceField) and not field.read_only:
                field.look_up(item[name] for item in objects if isinstance(item.get(name), str))

    def http_method_not_allowed(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer for the object whose slug is "batch", if there is one, as it has the address of the batch."""
        if kwargs or self.action_map != {"post": ADDRESS} or not re.fullmatch(self.lookup_value_regex, ADDRESS):
            return super().http_method_not_allowed(request, *args, **kwargs)
        one = type(self).as_view({method: name for method, name in _OF_ONE.items() if hasattr(self, name)})
        return one(request._request, **{self.lookup_field: ADDRESS})


class Batched[M: Model](Batches[M]):
    """The same for a resource whose batches are all created at once."""

    @action(detail=False, methods=["post"], url_path=ADDRESS)
    def batch(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """
        Create up to 1,000 objects in one change with one publication.

        If an item is not valid, nothing is created, and `errors` names each wrong item by its place, as in
        `#/items/3/name`.
        """
        return self.create_all(request)


def items_of(data: Any) -> list[Any] | None:
    """Return the items in a body, or None if its form is another one."""
    items = data.get(ITEMS) if isinstance(data, Mapping) else None
    return items if isinstance(items, list) else None


def refuse(places: Sequence[int], field: str, why: str) -> None:
    """Raise ValidationError for a field of the items at these places, if there are any."""
    if places:
        error = [ErrorDetail(why, code="unique")]
        raise ValidationError({ITEMS: {str(place): {field: error} for place in places}})


def _twins(values: Sequence[Any]) -> list[int]:
    """Return the place of each value that occurred before."""
    first: dict[Any, int] = {}
    return [number for number, value in enumerate(values) if first.setdefault(value, number) != number]
