"""The file of all callers whose requests a change would have denied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import batched
from typing import TYPE_CHECKING

from controlplane.core.files import cell, csv_line
from controlplane.objects.projects.models import Project, Token
from controlplane.traffic.callers.kinds import ANONYMOUS, PROJECT, TOKEN, Caller
from enforcement.model.limits import Limit

if TYPE_CHECKING:  # numpy, which only a preview needs
    from controlplane.releases.preview.previews import Recorded

COLUMNS = (
    *("caller", "id", "name", "project", "requests"),
    *("would_deny", "would_deny_at_least", "would_deny_at_most", "busiest_minute"),
)
AT_ONCE = 1_000


def csv_lines(recorded: Recorded, limits: Sequence[Limit]) -> Iterator[str]:
    """Yield the head, and then a line of CSV for each caller that *limits* would have denied, the most denied first."""
    yield csv_line(COLUMNS)
    for some in batched(recorded.affected(limits), AT_ONCE):
        names = named([one.caller for one in some])
        for one in some:
            kind, pk = one.caller
            texts = kind, pk, *names.get(one.caller, ("", ""))
            numbers = one.requests, one.denied.likely, one.denied.low, one.denied.high, one.busiest
            yield csv_line([*map(cell, texts), *numbers])


def named(callers: Sequence[Caller]) -> dict[Caller, tuple[str, str]]:
    """Return the name and the slug of the project of each caller. One that is deleted by now is left out."""
    tokens = Token.objects.filter(pk__in=[pk for kind, pk in callers if kind == TOKEN])
    projects = Project.objects.filter(pk__in=[pk for kind, pk in callers if kind in (PROJECT, ANONYMOUS)])
    named = {(TOKEN, pk): (name, slug) for pk, name, slug in tokens.values_list("pk", "name", "project__slug")}
    for pk, name, slug in projects.values_list("pk", "name", "slug"):
        named[PROJECT, pk] = named[ANONYMOUS, pk] = name, slug
    return named
