"""
The bounds that answers have broken, as enforcers report them with their usage.

What is kept is bounded, because every client of the store may write such rows. Only known projects and patterns count,
a project has at most 200 models with a format, and no report raises more than an addend may be.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from django.db import models
from django.db.models import Max, Sum

from controlplane.core.upserts import bounded_sum, execute, upserts
from controlplane.objects.prices.models import BrokenBound, BrokenRow, ModelAddend, ModelPrice
from controlplane.objects.projects.models import Project
from enforcement.metering.broken import BEYOND, MAX_PAIRS
from enforcement.metering.price_documents import MAX_ADDED_TOKENS
from enforcement.metering.refusals import OTHER

_TABLE = BrokenBound._meta.db_table
_MERGED = {
    name: f"CASE WHEN excluded.{name} > {_TABLE}.{name} THEN excluded.{name} ELSE {_TABLE}.{name} END"
    for name in ("added", "last_at")
}


def note(rows: Iterable[BrokenRow]) -> None:
    """Add what enforcers have reported to what is known. The caller's transaction ensures that this happens once."""
    known = set(Project.objects.filter(pk__in={row.project_id for row in rows}).values_list("pk", flat=True))
    rows = [row for row in rows if row.project_id in known]
    if not rows:
        return
    _count(rows, known)
    _report([row for row in rows if row.is_for_all])


def lately(since: datetime, projects: models.QuerySet | None = None) -> list[dict[str, object]]:
    """
    Return models with their format, whose bounds were broken after an instant, the latest first.

    Args:
        projects: The query of the projects whose requests count. None: all.
    Returns:
        Dictionaries with ``model``, ``format``, ``requests`` since they are counted, ``last_at``, and ``added``, which
        is the most tokens that the provider adds, or 0 if the input was within its bound. ``said`` has them in words.
    """
    rows = BrokenBound.objects.filter(last_at__gte=since)
    rows = rows if projects is None else rows.filter(project_id__in=projects.values("pk"))
    pairs = rows.values("model", "format").annotate(
        requests=Sum("requests"), added=Max("added"), last_at=Max("last_at")
    )
    latest = pairs.order_by("-last_at", "model", "format")[:MAX_PAIRS]
    return [{**row, "said": _in_words(row["added"])} for row in latest]


def _in_words(added: int) -> str:
    if added >= BEYOND:  # by how much, is not kept
        return f"more than {MAX_ADDED_TOKENS:,} tokens"
    return f"up to {added:,} tokens" if added else ""


def _count(rows: Sequence[BrokenRow], projects: Iterable[str]) -> None:
    pairs_of = {project: set[tuple[str, str]]() for project in projects}
    for project, *pair in BrokenBound.objects.filter(project_id__in=pairs_of).values_list(*BrokenBound.KEY):
        pairs_of[project].add((pair[0], pair[1]))
    found: dict[tuple[str, str, str], tuple[int, int, datetime]] = {}
    for row in rows:
        named = pairs_of[row.project_id]
        if (row.model, row.format) not in named and len(named) >= MAX_PAIRS:
            row = row._replace(model=OTHER, format=OTHER)
        named.add((row.model, row.format))
        key = row.project_id, row.model, row.format
        requests, added, at = found.get(key, (0, 0, row.at))
        found[key] = bounded_sum(requests + row.requests), max(added, min(row.added, BEYOND)), max(at, row.at)
    names = ("requests", "added", "last_at")
    # Sorted, so that two drains at the same time lock common rows in the same order.
    execute(upserts(BrokenBound, BrokenBound.KEY, names, sorted(found.items()), computed=_MERGED))


def _report(rows: Iterable[BrokenRow]) -> None:
    """Note the most tokens that providers add by the pattern of a price. Nothing is published yet."""
    most: dict[str, int] = {}
    for row in rows:
        if row.added and row.pattern:
            most[row.pattern] = max(min(row.added, BEYOND), most.get(row.pattern, 0))
    known = set(ModelPrice.objects.filter(pattern__in=most).values_list("pattern", flat=True))
    new = [ModelAddend(pattern=pattern) for pattern in sorted(known)]
    ModelAddend.objects.bulk_create(new, ignore_conflicts=True)
    for addend in new:
        reported = most[addend.pattern]
        ModelAddend.objects.filter(pattern=addend.pattern, reported__lt=reported).update(reported=reported)
