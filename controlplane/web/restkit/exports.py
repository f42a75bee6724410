"""All rows of a list as a file of CSV or JSON Lines, written while they are read."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import batched
from typing import Any

from django.db.models import Model
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request

from controlplane.core.files import cell, csv_line, streamed
from controlplane.web.restkit.authentication import keeps_access
from controlplane.web.restkit.serializers import QuerySerializer
from controlplane.web.restkit.views import ApiView

CSV, JSON_LINES = "csv", "jsonl"
TYPES = {CSV: "text/csv", JSON_LINES: "application/jsonl"}
# Rows that are read and written at once.
AT_ONCE = 500

Record = Mapping[str, Any]


class CsvRenderer(JSONRenderer):
    """Lets a client accept CSV. Problems are JSON all the same."""

    media_type = TYPES[CSV]
    format = CSV


class JsonLinesRenderer(JSONRenderer):
    media_type = TYPES[JSON_LINES]
    format = JSON_LINES


class ExportQuery(QuerySerializer):
    """The query of an export, which has no pages."""

    format = serializers.ChoiceField(
        list(TYPES), required=False, help_text=f"If left out, as the header `Accept` says, else {JSON_LINES}."
    )

    def get_fields(self) -> dict[str, serializers.Field]:
        """Return the fields of the list and of this query, without those of pages."""
        return {name: field for name, field in super().get_fields().items() if name not in ("page_size", "cursor")}


class Exported[M: Model](ApiView[M]):
    """
    The action of a resource that streams all rows that its query chooses.

    Attributes:
        file_name: The name of the file, without its ending.
    """

    file_name = "export"

    def get_renderers(self) -> list[BaseRenderer]:
        more = [CsvRenderer(), JsonLinesRenderer()] if getattr(self, "action", "") == "export" else []
        return [*super().get_renderers(), *more]

    @extend_schema(responses={(200, kind): OpenApiTypes.STR for kind in TYPES.values()})
    @action(detail=False, methods=["get"])
    def export(self, request: Request, *args: Any, **kwargs: Any) -> StreamingHttpResponse:
        """Stream all rows as a file of CSV or JSON Lines, in the order of the list and without pages."""
        accepted = next((name for name, kind in TYPES.items() if kind == request.accepted_media_type), JSON_LINES)
        kind = self.query.get("format", accepted)
        records = self.records()
        lines = csv_lines(self.columns(), records) if kind == CSV else json_lines(records)
        name, may_go_on = f"{self.file_name}.{kind}", keeps_access(self.access, self.required_scope())
        return streamed(lines, name, may_go_on, f"{TYPES[kind]}; charset=utf-8")

    def columns(self) -> Sequence[str]:
        """Return the names of the members of each record."""
        return list(self.serializer_class().fields)

    def records(self) -> Iterator[Record]:
        """Yield each row as a client reads it."""
        rows = self.get_queryset().order_by(*self.list_order())
        for some in batched(rows.iterator(chunk_size=AT_ONCE), AT_ONCE):
            yield from self.as_records(some)

    def as_records(self, rows: Sequence[M]) -> Iterable[Record]:
        """Return some rows as a client reads them."""
        return self.get_serializer(rows, many=True).data


def json_lines(records: Iterable[Record]) -> Iterator[str]:
    """Yield a line of JSON for each record."""
    for record in records:
        yield json.dumps(record, ensure_ascii=False) + "\n"


def csv_lines(columns: Sequence[str], records: Iterable[Record]) -> Iterator[str]:
    """Yield the head and then a line of CSV for each record. A value that is no string or number is JSON."""
    yield csv_line(columns)
    for record in records:
        yield csv_line([_cell(record.get(name)) for name in columns])


def _cell(value: Any) -> str | int:
    if value is None:
        return ""
    return cell(json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value)
