"""What every resource of the API has in common: identity, query, conditions, changes, and the headers of an answer."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, ClassVar

from django.db.models import Model, QuerySet
from rest_framework import status
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from controlplane.api.authentication import Access
from controlplane.api.problems import PreconditionFailed
from controlplane.api.requests import MAX_REASON, REASON_HEADER, request_id
from controlplane.api.serializers import ListQuery, NoQuery, QuerySerializer
from controlplane.publishing.changes import Actor, Change, change
from controlplane.publishing.models import OutboxEntry
from controlplane.publishing.publisher import last_revision
from enforcement.model.documents import dumps

_ETAG = re.compile(r'(W/)?"([^"]*)"')


class ApiView(GenericViewSet):
    """
    A resource. ``scopes`` names, for each action, the scope it asks of a key: an action without one is nobody's.

    ``queries`` names the query of an action that takes one; every other parameter is refused.
    """

    scopes: ClassVar[dict[str, str]] = {}
    queries: ClassVar[dict[str, type[QuerySerializer]]] = {}
    # Actions that a key which is limited to projects may not do; "*": none of them.
    of_all_projects: ClassVar[tuple[str, ...]] = ()
    # Neither OPTIONS nor TRACE: the OpenAPI document says what there is.
    http_method_names = ("get", "head", "post", "put", "patch", "delete")
    # Whether single things have an ETag, which If-Match may name.
    conditional: ClassVar[bool] = True
    # Whether the query names the thing itself, so that it may be not found.
    holder_in_query: ClassVar[bool] = False
    tx: Change | None = None

    @property
    def access(self) -> Access:
        return self.request.auth

    def required_scope(self) -> str | None:
        return self.scopes.get(self.action)

    def concerns_all_projects(self) -> bool:
        return "*" in self.of_all_projects or self.action in self.of_all_projects

    def query_class(self) -> type[QuerySerializer]:
        return self.queries.get(self.action, ListQuery if self.action == "list" else NoQuery)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if request.method in self.allowed_methods:
            self.query = self.query_class().read(request.query_params, self.get_serializer_context())

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "access": getattr(self.request, "auth", None)}

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        response["X-Request-Id"] = request_id(request)
        response["Cache-Control"] = "no-store"
        if self.tx and not response.exception:
            response["Sluicegate-Revision"] = revision_header(self.tx)
        return response

    @contextmanager
    def change(self, reason: str = "") -> Iterator[Change]:
        """Open the one change of this request; its reason is given, or in the request's header."""
        actor = Actor(self.access.key.name, "api", request_id(self.request))
        with change(actor=actor, reason=reason or self._reason()) as tx:
            yield tx
        self.tx = tx

    def _reason(self) -> str:
        reason = self.request.headers.get(REASON_HEADER, "")
        if len(reason) > MAX_REASON or not reason.isprintable():
            message = f"The header {REASON_HEADER} holds at most {MAX_REASON} printable characters."
            raise ValidationError([ErrorDetail(message, code="invalid_reason")])
        return reason

    def read_body(self, instance: Model | None = None, *, partial: bool = False) -> Any:
        """Return the serializer of the request's body, which is valid."""
        serializer = self.get_serializer(instance, data=self.request.data, partial=partial)
        serializer.is_valid(raise_exception=True)
        return serializer

    def locked(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Lock rows until the end of the change: whoever comes second sees what the first one made of them."""
        return rows.select_for_update(of=("self",))

    def answer(self, obj: Model, code: int = status.HTTP_200_OK, headers: dict[str, str] | None = None) -> Response:
        data = self.get_serializer(obj).data
        return Response(data, code, headers={"ETag": etag(obj), **(headers or {})})


def revision_header(tx: Change) -> str:
    """Name the revision that carries a change; of one that changed nothing, the one that is published."""
    if tx.revision is not None:
        return str(tx.revision)
    if OutboxEntry.objects.filter(revision=None).exists():
        return "pending"
    return str(last_revision())


def etag(obj: Model) -> str:
    """Return the entity tag of a row: its version where it counts them, else a digest of what it says."""
    version = getattr(obj, "version", None) or sha256(dumps(obj.as_record()).encode()).hexdigest()[:16]
    return f'"{obj.pk}-{version}"'


def check_precondition(request: Request, obj: Model) -> None:
    """
    Honour If-Match (RFC 9110, 13.1.1): go on only if the row is as the client read it.

    Raises:
        PreconditionFailed: It was changed since; the answer carries its present tag.
    """
    expected = request.headers.get("If-Match")
    if expected is None or expected.strip() == "*":
        return
    # A weak tag matches nothing here.
    strong = {f'"{tag}"' for weak, tag in _ETAG.findall(expected) if not weak}
    if etag(obj) not in strong:
        raise PreconditionFailed(headers={"ETag": etag(obj)})


class Listed:
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.get_queryset())
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class Retrieved:
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.answer(self.get_object())


class Created:
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            created = self.save_new(tx, self.read_body())
        obj = self.get_queryset().get(pk=created.pk)
        return self.answer(obj, status.HTTP_201_CREATED, {"Location": self.location(obj)})

    def save_new(self, tx: Change, serializer: Any) -> Model:
        created = serializer.save()
        tx.created(created)
        return created

    def location(self, obj: Model) -> str:
        field = self.lookup_field
        return f"{self.request.path}/{getattr(obj, field)}"


class Updated:
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self._update(partial=True)

    def _update(self, *, partial: bool) -> Response:
        with self.change() as tx:
            obj = self.for_writing()
            before = obj.as_record()
            self.save_changed(tx, self.read_body(obj, partial=partial), before)
        return self.answer(self.get_queryset().get(pk=obj.pk))

    def for_writing(self) -> Model:
        """
        Return the row that the address names, locked, if the request's conditions hold.

        Raises:
            NotFound: It is not there, or not this key's.
            PreconditionFailed: It was changed since the client read it.
            Problem: The key may read but not change it.
        """
        found = self.locked(self.get_queryset()).filter(**self.lookup()).first()
        if found is None:
            raise NotFound
        self.check_writable(found)
        check_precondition(self.request, found)
        return found

    def lookup(self) -> dict[str, str]:
        return {self.lookup_field: self.kwargs[self.lookup_url_kwarg or self.lookup_field]}

    def check_writable(self, obj: Model) -> None:
        """Refuse what the key may see and not change."""

    def save_changed(self, tx: Change, serializer: Any, before: dict[str, Any]) -> None:
        """Save what differs; where nothing does, leave no trace."""
        if serializer.candidate(serializer.validated_data).as_record() != before:
            tx.updated(serializer.save(), before)


class Replaced(Updated):
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self._update(partial=False)


class Deleted:
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            tx.delete(self.for_writing())
        return Response(status=status.HTTP_204_NO_CONTENT)
