"""Files to download, which are written line by line while the rows are read."""

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from unicodedata import normalize

from django.http import StreamingHttpResponse

from controlplane.core.text import escaped, visible

logger = logging.getLogger(__name__)

# A spreadsheet takes a cell that starts so for a formula, and users choose the names of tokens.
FORMULA = ("=", "+", "-", "@")

# Whether the reader may still see the rows is asked again after so many lines, and after so long if they are slow.
CHECKED_LINES = 500
CHECKED_SECONDS = 1.0


class AccessEnded(Exception):
    """Raised in the middle of a file whose reader may not see all of it any more."""


def csv_line(values: Iterable[object]) -> str:
    """Return a line of CSV with its end."""
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def cell(value: str | int) -> str | int:
    """
    Return the value of a cell, with an apostrophe before a string that a spreadsheet would take for a formula.

    Spreadsheets skip white space and controls at the start, and some of them read a full-width "＝" as "=".
    """
    if not isinstance(value, str):
        return value
    start = visible(normalize("NFKC", value)).lstrip()
    return f"'{escaped(value)}" if start.startswith(FORMULA) else escaped(value)


def streamed(
    lines: Iterable[str], name: str, may_go_on: Callable[[], bool], kind: str = "text/csv; charset=utf-8"
) -> StreamingHttpResponse:
    """
    Return a response that is a file with this name. Nothing keeps a copy of it.

    Args:
        may_go_on: Whether the reader may still see all rows, read anew. If not, the file breaks off.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingHttpResponse(while_allowed(lines, name, may_go_on), content_type=kind, headers=headers)


def while_allowed(
    lines: Iterable[str], name: str, may_go_on: Callable[[], bool], clock: Callable[[], float] = monotonic
) -> Iterator[str]:
    """
    Yield the lines of the file *name* for as long as the reader may see them.

    Raises:
        AccessEnded: The reader may not see all of them any more. The server then closes the connection without the end
            of the response, so that no client takes the lines until then for the whole file.
    """
    checked = clock()
    for number, line in enumerate(lines, 1):
        if number % CHECKED_LINES == 0 or clock() - checked > CHECKED_SECONDS:
            if not may_go_on():
                logger.warning("The file %s broke off after %d lines: its reader lost access.", name, number - 1)
                raise AccessEnded
            checked = clock()
        yield line
