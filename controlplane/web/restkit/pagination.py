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
    A page of the rows of a list.

    A cursor holds the direction and the values of the row at the edge. It is signed, so a client cannot forge one.
    """

    def rows_of[M: Model](
        self, rows: QuerySet[M], request: Request, ordering: tuple[str, ...], size: int, cursor: str | None
    ) -> list[M]:
        """
        Return the rows of a page, or raise InvalidQuery if the cursor is none of this list.

        Args:
            ordering: The columns by which the list is ordered, which are unique together.
            size: The number of rows of a page.
            cursor: Where the page begins. None: with the first row.
        """
        self._request, self._ordering = request, ordering
        self._salt = f"cursor:{ordering}:{request.path}"
        backwards, edge = self._read(cursor) if cursor else (False, None)
        found = list(_beyond(rows, ordering, edge, backwards)[: size + 1])
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

    def _read(self, cursor: str) -> tuple[bool, list[str]]:
        try:
            backwards, edge = signing.loads(cursor, salt=self._salt)
        except signing.BadSignature as exc:
            message = "Must be a cursor of this list, taken from next or previous of another page."
            raise InvalidQuery({"cursor": [ErrorDetail(message, code="invalid_cursor")]}) from exc
        return backwards, edge

    def _cursor(self, row: Model, *, backwards: bool) -> str:
        fields = {field.name: field for field in row._meta.concrete_fields}
        edge = [fields[name.lstrip("-")].value_to_string(row) for name in self._ordering]
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


def _beyond[M: Model](
    rows: QuerySet[M], ordering: tuple[str, ...], edge: list[str] | None, backwards: bool
) -> QuerySet[M]:
    """Return a query of the rows behind the row at the *edge* of a page, or of all for None, in order or backwards."""
    signs = [(name.lstrip("-"), name.startswith("-") != backwards) for name in ordering]
    ordered = rows.order_by(*(f"-{name}" if falling else name for name, falling in signs))
    if edge is None:
        return ordered
    beyond, equal = Q(), Q()
    for (name, falling), value in zip(signs, edge, strict=True):
        beyond |= equal & Q(**{f"{name}__{'lt' if falling else 'gt'}": value})
        equal &= Q(**{name: value})
    return ordered.filter(beyond)
