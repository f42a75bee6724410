"""Files to download, which are written line by line while the rows are read."""

import csv
import io
from collections.abc import Iterable

from django.http import StreamingHttpResponse


def csv_line(values: Iterable[object]) -> str:
    """Return a line of CSV with its end."""
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def streamed(lines: Iterable[str], name: str, kind: str = "text/csv; charset=utf-8") -> StreamingHttpResponse:
    """Return a response that is a file with this name. Nothing keeps a copy of it."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingHttpResponse(lines, content_type=kind, headers=headers)
