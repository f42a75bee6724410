"""The documents of earlier revisions, by which a decision of the past is explained."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import batched

from django.db.models import Exists, OuterRef, QuerySet

from controlplane.releases.publishing.models import PublishedDocument, Revision

# How long a document is kept after another one has replaced it. This is as long as the usage by the hour.
KEPT = timedelta(days=90)
AT_ONCE = 500

Document = Mapping[str, object] | None


def keep(number: int, documents: Mapping[str, Document]) -> None:
    """Save those of the *documents* of revision *number* that are not as the last kept ones of the same name."""
    for names in batched(documents, AT_ONCE):
        last = {row.name: row.document for row in rows_at(names)}
        changed = [name for name in names if name not in last or last[name] != documents[name]]
        PublishedDocument.objects.bulk_create(
            [PublishedDocument(name=name, revision=number, document=documents[name]) for name in changed]
        )


def rows_at(names: Iterable[str], number: int | None = None) -> QuerySet[PublishedDocument]:
    """
    Return the rows of the documents with these *names* that were in force at revision *number*, for None at the last.

    A name without a row had no document then, or it is no longer known.
    """
    known = (
        PublishedDocument.objects.all() if number is None else PublishedDocument.objects.filter(revision__lte=number)
    )
    later = known.filter(name=OuterRef("name"), revision__gt=OuterRef("revision"))
    return known.filter(~Exists(later), name__in=list(names))


def after(names: Iterable[str], number: int) -> QuerySet[PublishedDocument]:
    """Return the rows of the documents with these names that replaced others after revision *number*, in order."""
    return PublishedDocument.objects.filter(name__in=list(names), revision__gt=number).order_by("revision", "id")


def prune(now: datetime) -> int:
    """Delete the documents that were replaced over KEPT ago, and return their number."""
    old = Revision.objects.filter(published_at__lt=now - KEPT).order_by("-number").values_list("number", flat=True)
    last = old.first()
    if last is None:
        return 0
    later = PublishedDocument.objects.filter(
        name=OuterRef("name"), revision__gt=OuterRef("revision"), revision__lte=last
    )
    return PublishedDocument.objects.filter(Exists(later)).delete()[0]
