"""The base classes of the API's views, with the query, the conditions, the change and the headers of the response."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from django.db.models import Model, QuerySet
from django.utils.functional import cached_property
from rest_framework import status
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.viewsets import GenericViewSet

from controlplane.changes.change.transaction import Actor, OpenChange, change
from controlplane.core.records import RecordedModel
from controlplane.core.requests import ID_HEADER, request_id
from controlplane.core.transactions import snapshot, take_turn
from controlplane.releases.publishing.models import OutboxEntry
from controlplane.releases.publishing.publisher import last_revision, revision_of
from controlplane.web.restkit.authentication import Access, LimitedKey
from controlplane.web.restkit.deprecation import Deprecation, headers_of, noted
from controlplane.web.restkit.idempotency.answers import Answer, ReusedKeyError, StillRunningError, answer_once
from controlplane.web.restkit.ordering import Orders, columns_of
from controlplane.web.restkit.pagination import CursorPage
from controlplane.web.restkit.parsers import MergePatchParser, is_merge_patch, merged
from controlplane.web.restkit.problems import Conflict, IdempotencyKeyReused, RequestRunning
from controlplane.web.restkit.requests import fingerprint, idempotency_key_of, reason_of
from controlplane.web.restkit.serializers import ListQuery, NoBody, NoQuery, QuerySerializer
from controlplane.web.restkit.throttling import ThrottledView
from controlplane.web.restkit.writes.conditions import check_headers, check_precondition, compares_versions, etag
from controlplane.web.restkit.writes.later import Later
from controlplane.web.restkit.writes.queries import WriteQuery
from controlplane.web.restkit.writes.trials import Trial, TrialSerializer, as_json, trial, without_secrets
from controlplane.web.restkit.writes.waiting import HEADER, USUAL_SECONDS, acknowledgement_of

WRITES = ("POST", "PUT", "PATCH", "DELETE")
REVISION_HEADER = "Sluicegate-Revision"
REPLAYED_HEADER = "Idempotency-Replayed"
# These headers belong to the object of a response, or to the job that it names. All others belong to one response.
WARNING_HEADER = "Sluicegate-Warning"
KEPT_HEADERS = ("ETag", "Location", "Retry-After", WARNING_HEADER)


class ApiView[M: Model](ThrottledView, GenericViewSet[M]):
    """
    The base class of a resource.

    Attributes:
        scopes: The scope that a key needs for each action. No key may do an action without a scope.
        queries: The query of each action that has one. All other parameters are refused.
        of_all_projects: The actions that a key limited to projects may not do, or "*" for all of them.
        orders: The columns of each order of the list that a query may ask for.
        creates_by_put: Whether PUT creates an object that is not there.
        deprecated: The actions that will be removed.
        view_of_one: The view of single objects, if it is another one.
        conditional: Whether single objects have an ETag, which If-Match may name.
        trials: The response to a dry run of each action whose view adds something to the usual one.
        read_only: Whether POST changes nothing, as it asks something that must not be in an address.
        starts_jobs: Whether a POST that changes nothing starts a job if its body says so.
        holder_in_query: Whether the query names the object, so that the response may be 404.
    """

    serializer_class: type[Serializer]
    pagination_class: type[CursorPage] | None = CursorPage
    scopes: ClassVar[dict[str, str]] = {}
    queries: ClassVar[dict[str, type[QuerySerializer]]] = {}
    of_all_projects: ClassVar[tuple[str, ...]] = ()
    trials: ClassVar[dict[str, type[TrialSerializer]]] = {}
    deprecated: ClassVar[Mapping[str, Deprecation]] = {}
    # OPTIONS and TRACE are left out, because the OpenAPI document describes the API.
    http_method_names = ("get", "head", "post", "put", "patch", "delete")
    orders: ClassVar[Orders] = {}
    ordering: ClassVar[tuple[str, ...]]
    conditional: ClassVar[bool] = True
    creates_by_put: ClassVar[bool] = False
    view_of_one: ClassVar[Any] = None
    read_only: ClassVar[bool] = False
    starts_jobs: ClassVar[bool] = False
    holder_in_query: ClassVar[bool] = False
    tx: OpenChange | None = None
    made = ""  # the id of the change that this request or an earlier one has made

    @property
    def access(self) -> Access:
        auth: Any = self.request.auth
        return auth

    def required_scope(self) -> str | None:
        return self.scopes.get(self.action)

    def concerns_all_projects(self) -> bool:
        return "*" in self.of_all_projects or self.action in self.of_all_projects

    def query_class(self) -> type[QuerySerializer]:
        usual = WriteQuery if self.is_change() else ListQuery if self.action == "list" else NoQuery
        return self.queries.get(self.action, usual)

    def is_change(self) -> bool:
        """Return whether the request, or the one that the document describes, changes something."""
        return getattr(self.request, "method", "") in WRITES and not self.read_only

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if request.method in self.allowed_methods:
            self.query = self.query_class().read(request.query_params, self.get_serializer_context())
            if self.is_change() or self.starts_job(request):
                self._wrap_change(request)

    def _wrap_change(self, request: Request) -> None:
        """Check the headers of a change, and have it undone if it is only tried, or made once if it has a key."""
        check_headers(request, versioned=compares_versions(self))
        method = (request.method or "").lower()
        if method == "delete":  # what a body asks for, such as a dry run, would not be done
            NoBody(data=request.data or {}).is_valid(raise_exception=True)
        if self.query.get("dry_run"):
            setattr(self, method, partial(self._try, getattr(self, method)))
            return
        if name := idempotency_key_of(request):
            setattr(self, method, partial(self._once, name, getattr(self, method)))
        if "wait" in self.query:
            setattr(self, method, partial(self._wait, getattr(self, method)))

    def _wait(self, act: Callable[..., Response], request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the response of *act* after every live instance has its change, or the time is over."""
        response = act(request, *args, **kwargs)
        found = acknowledgement_of(self.made, self.query.get("timeout", USUAL_SECONDS))
        if found.revision is not None:
            response[REVISION_HEADER] = str(found.revision)
        response[HEADER] = found.header(with_numbers=self.access.all_projects)
        return response

    def _try(self, act: Callable[..., Response], request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return what *act* would do. Nothing of it is kept, and what follows a commit does not happen."""
        with trial() as tried:
            tried.note(act(request, *args, **kwargs), self.tx, self.access)
        self.tx = None
        return Response({**tried.as_data(self.access), **self.review(tried)})

    def review(self, tried: Trial) -> dict[str, Any]:
        """Return what a view adds to the response to a dry run. The rows are again as they were."""
        return {}

    def starts_job(self, request: Request) -> bool:
        """Return whether a request that changes nothing is to start a job."""
        return self.starts_jobs and isinstance(request.data, Mapping) and request.data.get("job") is True

    def as_problems(self) -> AbstractContextManager[None]:
        """Return a context that raises errors of a change, also those after its commit, as errors of REST."""
        return nullcontext()

    def _once(self, name: str, act: Callable[..., Response], request: Request, *args: Any, **kwargs: Any) -> Response:
        """Return the response of *act*, or what was kept of an earlier one, in which every secret is null."""
        made: list[Response] = []

        def run() -> Answer:
            made.append(response := act(request, *args, **kwargs))
            read = (lambda: self._kept(response.read_again())) if isinstance(response, Later) else None
            return replace(self._kept(response), read=read)

        try:
            with self.as_problems():
                answer = answer_once(self.access.key, name, fingerprint(request), run)
        except ReusedKeyError as exc:
            raise IdempotencyKeyReused from exc
        except StillRunningError as exc:
            raise RequestRunning from exc
        if made:
            return made[0]
        if not self.access.covers(answer.reach):
            raise LimitedKey("This key was limited to fewer projects after it made this change.")
        headers, self.made = {**answer.headers, REPLAYED_HEADER: "true"}, answer.change
        if answer.change:
            headers[REVISION_HEADER] = revision_header(revision_of(answer.change))
        return Response(json.loads(answer.body) if answer.body else None, answer.status, headers=headers)

    def _kept(self, response: Response) -> Answer:
        """Return what is kept of a response for repetitions of its request."""
        body = as_json(response)
        headers = {name: response[name] for name in KEPT_HEADERS if name in response}
        text = "" if body is None else json.dumps(without_secrets(body), ensure_ascii=False)
        change, reach = self.tx.id if self.tx else "", self.access.reach
        return Answer(response.status_code, text, headers, change, reach)

    def get_parsers(self) -> list[BaseParser]:
        """Return the parsers of the request, or of the action that the OpenAPI document describes."""
        is_patch = getattr(self, "action", "") == "partial_update" or getattr(self.request, "method", "") == "PATCH"
        return [*super().get_parsers(), *([MergePatchParser()] if is_patch else [])]

    def list_order(self) -> tuple[str, ...]:
        """Return the columns by which a list is ordered, which are unique together."""
        return columns_of(self.query["order"], self.orders) if "order" in self.query else self.ordering

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "access": getattr(self.request, "auth", None)}

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        response[ID_HEADER] = request_id(request)
        response["Cache-Control"] = "no-store"
        of_action = [self.deprecated[self.action]] if self.action in self.deprecated else []
        for name, value in headers_of([*of_action, *noted(request)]).items():
            response[name] = f"{response[name]}, {value}" if name in response else value
        if self.tx and not response.exception and REVISION_HEADER not in response:
            response[REVISION_HEADER] = revision_header(self.tx.revision)
        return response

    @contextmanager
    def change(self, reason: str = "") -> Iterator[OpenChange]:
        """
        Run the block as the one change of this request, with the *reason* given or that of the header, and yield that
        change.
        """
        actor = Actor(self.access.key.name, "api", request_id(self.request))
        with change(actor=actor, reason=reason_of(self.request, reason)) as tx:
            yield tx
        self.tx, self.made = tx, tx.id

    def body(self) -> Any:
        """Return the body of the request before it is validated."""
        return self.request.data

    def read_body(self, instance: M | None = None, *, partial: bool = False) -> Any:
        """Return a serializer with the request's body, or raise ValidationError if the body is not valid."""
        data = self.body()
        if partial and is_merge_patch(self.request) and isinstance(data, Mapping):
            shown = self.get_serializer(instance).data
            objects = {
                name: merged(shown.get(name), value) for name, value in data.items() if isinstance(value, Mapping)
            }
            data = {**data, **objects}
        serializer = self.get_serializer(instance, data=data, partial=partial)
        serializer.is_valid(raise_exception=True)
        return serializer

    def locked(self, rows: QuerySet[M]) -> QuerySet[M]:
        """
        Return a query that locks the rows until the end of the change, so that a second change sees the result of the
        first.
        """
        return rows.select_for_update(of=("self",))

    def as_written(self, obj: M) -> M:
        """
        Return the row, read again as this change has written it, or raise Conflict if the key cannot see it any more.

        Only an open change may ask, because its locks keep others from the row. After the commit, the row may be
        another one's or gone.

        Raises:
            Conflict: Another request is deleting what the row belongs to. The change then fails.
        """
        written = self.get_queryset().filter(pk=obj.pk).first()
        if written is None:
            raise Conflict
        return written

    def answer(self, obj: M, code: int = status.HTTP_200_OK, headers: dict[str, str] | None = None) -> Response:
        """Return a response with one object, and its ETag if it has one."""
        tag = {"ETag": etag(obj)} if self.conditional and isinstance(obj, RecordedModel) else {}
        return Response(self.get_serializer(obj).data, code, headers={**tag, **(headers or {})})

    def page(self) -> list[M]:
        """Return the rows of the page of the list that the query asks for."""
        ordering, size, cursor = self.list_order(), self.query["page_size"], self.query.get("cursor")
        return self.pages.rows_of(self.get_queryset(), self.request, ordering, size, cursor)

    @cached_property
    def pages(self) -> CursorPage:
        return (self.pagination_class or CursorPage)()

    def get_paginated_response(self, data: Any) -> Response:
        return self.pages.get_paginated_response(data)


def revision_header(revision: int | None) -> str:
    """
    Return the value of the header Sluicegate-Revision after a change, for None "pending".

    If nothing was changed and nothing is pending, it is the number of the last revision.
    """
    if revision is not None:
        return str(revision)
    if OutboxEntry.objects.filter(revision=None).exists():
        return "pending"
    return str(last_revision())


class Listed[M: Model](ApiView[M]):
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with snapshot():
            return self._page()

    def _page(self) -> Response:
        return self.get_paginated_response(self.get_serializer(self.page(), many=True).data)


class Retrieved[M: Model](ApiView[M]):
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with snapshot():
            return self.answer(self.get_object())


class Created[M: RecordedModel](ApiView[M]):
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            obj = self.as_written(self.save_new(tx, self.read_body()))
            return self.answer(obj, status.HTTP_201_CREATED, {"Location": self.location(obj)})

    def save_new(self, tx: OpenChange, serializer: Any) -> M:
        """Save a new row with its audit entry, and return the row."""
        created = serializer.save()
        tx.created(created)
        return created

    def location(self, obj: M) -> str:
        field = self.lookup_field
        return f"{self.request.path}/{getattr(obj, field)}"


class Written[M: RecordedModel](ApiView[M]):
    """Finds the row that a change is for."""

    def for_writing(self) -> M:
        """
        Return the row that the address names, locked for a change, or raise NotFound or another error.

        Raises:
            NotFound: The row does not exist, or the key may not see it.
            PreconditionFailed: The row was changed after the client read it.
            Problem: The key may read the row but not change it.
        """
        result = self.locked(self.get_queryset()).filter(**self.lookup()).first()
        if result is None:
            raise NotFound
        self.check_writable(result)
        check_precondition(self.request, result)
        return result

    def lookup(self) -> dict[str, str]:
        return {self.lookup_field: self.kwargs[self.lookup_url_kwarg or self.lookup_field]}

    def check_writable(self, obj: M) -> None:
        """Do nothing, except in a view that raises Problem for a row that the key may see but not change."""


class Updated[M: RecordedModel](Written[M]):
    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self._update(partial=True)

    def _update(self, *, partial: bool) -> Response:
        with self.change() as tx:
            return self._write(tx, partial=partial)

    def _write(self, tx: OpenChange, *, partial: bool) -> Response:
        obj = self.for_writing()
        before = obj.as_record()
        self.save_changed(tx, self.read_body(obj, partial=partial), before)
        return self.answer(self.as_written(obj))

    def save_changed(self, tx: OpenChange, serializer: Any, before: dict[str, Any]) -> None:
        """Save the row with an audit entry if it would differ from *before*, else do nothing."""
        if serializer.candidate(serializer.validated_data).as_record() != before:
            tx.updated(serializer.save(), before)


class Replaced[M: RecordedModel](Updated[M]):
    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self._update(partial=False)


class CreatedOrReplaced[M: RecordedModel](Created[M], Replaced[M]):
    """
    A replacement that creates what is not there, under the name that the address has.

    Of two at once, the second replaces what the first has created.
    """

    creates_by_put = True

    def update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            if self._is_there():
                return self._write(tx, partial=False)
            if not (self.access.all_projects or self.may_create()):
                raise NotFound  # as for an object that the key may not see
            take_turn(f"create {request.path}")
            if self._is_there():
                return self._write(tx, partial=False)
            check_precondition(request, None)
            obj = self.as_written(self.save_new(tx, self.read_body()))
            return self.answer(obj, status.HTTP_201_CREATED, {"Location": request.path})

    def may_create(self) -> bool:
        """Return whether a key that is limited to projects may create an object at the address."""
        return False

    def _is_there(self) -> bool:
        return self.get_queryset().filter(**self.lookup()).exists()

    def body(self) -> Any:
        """Return the body with the name that the address has, or raise ValidationError if it has another one."""
        body = super().body()
        if self.request.method != "PUT" or not isinstance(body, Mapping):
            return body
        ((field, name),) = self.lookup().items()
        if body.get(field, name) != name:
            message = f"Must be {name!r}, as in the address, or be left out. PATCH changes it."
            raise ValidationError({field: [ErrorDetail(message, code="rule")]})
        return {**body, field: name}


class Deleted[M: RecordedModel](Written[M]):
    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        with self.change() as tx:
            tx.delete(self.for_writing())
        return Response(status=status.HTTP_204_NO_CONTENT)


class Resource[M: RecordedModel](Listed[M], Created[M], Retrieved[M], Updated[M], Deleted[M]):
    """All that can be done to rows, each of which has a name that the server chooses."""


class Named[M: RecordedModel](Listed[M], CreatedOrReplaced[M], Retrieved[M], Deleted[M]):
    """The same for rows to which clients give names, by which they can also be replaced."""
