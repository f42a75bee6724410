"""The export of the audit, written line by line while it is read."""

import json
from collections.abc import Iterator
from typing import Any

from django.db.models import Q, QuerySet

from controlplane.changes.audit.chain import FIELDS
from controlplane.changes.audit.models import AuditEntry, AuditSeal
from controlplane.core.files import cell, csv_line

COLUMNS = ("number", "digest", "id", "at", *FIELDS)
AT_ONCE = 500


def records(rows: QuerySet[AuditEntry]) -> Iterator[dict[str, object]]:
    """Yield each entry as a dictionary, with its place in the chain and its digest if it is sealed."""
    for entries in _in_pages(rows):
        seals = AuditSeal.objects.filter(entry_id__in=[entry.pk for entry in entries]).in_bulk(field_name="entry_id")
        for entry in entries:
            sealed = seals.get(entry.pk)
            place = {"number": sealed and sealed.number, "digest": sealed and sealed.digest}
            own = {name: getattr(entry, name) for name in FIELDS}
            yield {**place, "id": entry.pk, "at": entry.at.isoformat(timespec="microseconds"), **own}


def _in_pages(rows: QuerySet[AuditEntry]) -> Iterator[list[AuditEntry]]:
    """
    Yield the entries, some at a time, the oldest first if the rows rise by ``at`` or ``id``, else the newest.

    Each query begins behind the last entry. A cursor that outlives its transaction, as that of an iterator does, makes
    PostgreSQL read and keep all rows before the first line.
    """
    rising = rows.query.order_by[:1] in (("at",), ("id",))
    rows = rows.order_by("at", "pk") if rising else rows.order_by("-at", "-pk")
    behind = "gt" if rising else "lt"
    entries = list(rows[:AT_ONCE])
    while entries:
        yield entries
        if len(entries) < AT_ONCE:
            return
        at, pk = entries[-1].at, entries[-1].pk
        # The condition of the time alone lets the database begin there in its index.
        later = Q(**{f"at__{behind}": at}) | Q(**{f"pk__{behind}": pk})
        entries = list(rows.filter(later, **{f"at__{behind}e": at})[:AT_ONCE])


def json_lines(rows: QuerySet[AuditEntry]) -> Iterator[str]:
    """Yield a line of JSON for each entry."""
    for record in records(rows):
        yield json.dumps(record, ensure_ascii=False) + "\n"


def csv_lines(rows: QuerySet[AuditEntry]) -> Iterator[str]:
    """Yield the head and then a line of CSV for each entry. The records before and after are JSON."""
    yield csv_line(COLUMNS)
    for record in records(rows):
        yield csv_line([_cell(record[name]) for name in COLUMNS])


def _cell(value: Any) -> str | int:
    if isinstance(value, dict | list):
        return cell(json.dumps(value, ensure_ascii=False))
    return "" if value is None else cell(value)
