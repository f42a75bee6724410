"""Pagination by cursor. A cursor names a row and not a position, so new and deleted rows do not shift the pages."""

from typing import Any

from django.core import signing
from django.db.models import Model, Q, QuerySet
from rest_framework.exceptions import ErrorDetail
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from controlplane.web.restkit.problems import InvalidQuery


class CursorPage(BasePagination):
    """
    A page of rows in the view's ``ordering``, whose fields together are unique.

    A cursor holds the direction and the values of the row at the edge. It is signed, so a client cannot forge one.
    """

    def paginate_queryset(self, queryset: QuerySet[Any], request: Request, view: Any = None) -> list[Model]:
        self._request, self._ordering = request, view.list_order()
        self._salt = f"cursor:{self._ordering}:{request.path}"
        size, cursor = view.query["page_size"], view.query.get("cursor")
        backwards, edge = self._read(cursor) if cursor else (False, None)
        rows = _beyond(queryset, self._ordering, edge, backwards)[: size + 1]
        found = list(rows)
        more, page = len(found) > size, found[:size]
        if backwards:
            page.reverse()
        self._next = self._cursor(page[-1], backwards=False) if (backwards or more) and page else None
        self._previous = self._cursor(page[0], backwards=True) if (more if backwards else edge) and page else None
        return page

    def get_paginated_response(self, data: Any) -> Response:
        return page_of(self._request, data, self._next, self._previous)

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        link = {"type": ["string", "null"], "format": "uri"}
        cursor = {"type": ["string", "null"], "description": "The `cursor` of the next page. Null on the last one."}
        properties = {"results": schema, "next": link, "previous": link, "next_cursor": cursor}
        return {"type": "object", "required": [*properties], "properties": properties}

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        return []  # the parameters are fields of the view's query

    def _read(self, cursor: str) -> tuple[bool, list[Any]]:
        try:
            backwards, edge = signing.loads(cursor, salt=self._salt)
        except signing.BadSignature as exc:
            message = "Must be a cursor of this list, taken from next or previous of another page."
            raise InvalidQuery({"cursor": [ErrorDetail(message, code="invalid_cursor")]}) from exc
        return backwards, edge

    def _cursor(self, row: Model, *, backwards: bool) -> str:
        edge = [_plain(row, name.lstrip("-")) for name in self._ordering]
        return signing.dumps([backwards, edge], salt=self._salt)


def page_of(request: Request, data: Any, following: str | None, previous: str | None = None, **more: Any) -> Response:
    """
    Return the response with a page of a list.

    Args:
        following: The cursor of the next page, or None if there is none. So is *previous*.
        more: Other members of the body.
    """
    links = {name: _link(request, cursor) for name, cursor in (("next", following), ("previous", previous))}
    # The names of relations are those of the registry, in which a previous page is "prev".
    named = [f'<{links[name]}>; rel="{rel}"' for name, rel in (("next", "next"), ("previous", "prev")) if links[name]]
    headers = {"Link": ", ".join(named)} if named else {}
    return Response({"results": data, **links, "next_cursor": following, **more}, headers=headers)


def _link(request: Request, cursor: str | None) -> str | None:
    return cursor and replace_query_param(request.build_absolute_uri(), "cursor", cursor)


def _beyond(queryset: QuerySet[Any], ordering: tuple[str, ...], edge: list[Any] | None, backwards: bool) -> QuerySet:
    """Return a query of the rows behind the row at the *edge* of a page, or of all for None, in order or backwards."""
    signs = [(name.lstrip("-"), name.startswith("-") != backwards) for name in ordering]
    ordered = queryset.order_by(*(f"-{name}" if falling else name for name, falling in signs))
    if edge is None:
        return ordered
    beyond, equal = Q(), Q()
    for (name, falling), value in zip(signs, edge, strict=True):
        beyond |= equal & Q(**{f"{name}__{'lt' if falling else 'gt'}": value})
        equal &= Q(**{name: value})
    return ordered.filter(beyond)


def _plain(row: Model, name: str) -> str:
    return row._meta.get_field(name).value_to_string(row)
