"""The rows that a user has ticked in a list, or all rows of the list, between an action and its confirmation."""

import hashlib
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest

# A longer list of names is not read, and the number is what matters.
NAMES_SHOWN = 20


def selection(request: HttpRequest, rows: QuerySet) -> dict[str, Any]:
    """
    Return a dict of what the page of a confirmation shows of *rows* and posts back.

    All rows of a list are posted back as that, and not one by one, because a form has at most 1,000 fields. The digest
    shows whether the rows are still the same then.
    """
    everything = request.POST.get("select_across") == "1"
    count, shown = rows.count(), list(rows[:NAMES_SHOWN])
    return {
        "count": count,
        "shown": shown,
        "more": count - len(shown),
        "select_across": everything,
        "posted": [row.pk for row in (shown[:1] if everything else rows)],
        "digest": digest_of(rows),
    }


def has_changed(request: HttpRequest, rows: QuerySet) -> bool:
    """Return whether the selected rows differ from those that a user has seen, if any. *rows* is the whole list."""
    seen = request.POST.get("selection")
    if seen is None:
        return False
    if request.POST.get("select_across") != "1":
        rows = rows.filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))
    return seen != digest_of(rows)


def digest_of(rows: QuerySet) -> str:
    """Return a digest of the primary keys of *rows*."""
    keys = sorted(map(str, rows.order_by().values_list("pk", flat=True)))
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
