"""The rows of the list of revisions, in which those that only change tokens are folded."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Case, Count, F, IntegerField, Max, Min, Q, QuerySet, Value, When, Window
from django.db.models.functions import RowNumber

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.entries import VERBS, lines_of
from controlplane.changes.words.words import Line
from controlplane.objects.policies.models import Policy
from controlplane.objects.policies.names import Names
from controlplane.objects.projects.models import Token
from controlplane.releases.publishing.models import PublishedChange, Revision

A_PAGE = 25
# Of one revision in the list. The number of those that are left out is shown, and its page has more of them.
ENTRIES_SHOWN, ENTRIES_ON_A_PAGE = 3, 100
LINES_SHOWN = 4
# A shorter lag would read as none at all.
LEAST_MS = 50
# A longer run of folded revisions only says how many they are.
MOST_SUMMED = 5_000

# Kinds of revisions that change no policy, project or override.
FOLDED = (Revision.TOKEN, Revision.OTHER)
SHOWN = {
    "": (Revision.FULL, Revision.POLICY, Revision.OVERRIDE),
    "overrides": (Revision.OVERRIDE,),
    "tokens": (Revision.TOKEN,),
    "everything": tuple(kind for kind, _ in Revision.KINDS),
}
PLURALS = {"policy": "policies"}


@dataclass(slots=True)
class ListedRevision:
    """What a list shows of one audit entry."""

    entry: AuditEntry
    lines: list[Line]
    more: int = 0
    tokens: int | None = None

    @property
    def of(self) -> tuple[str, str]:
        """The type and the id of the object."""
        return self.entry.object_type, self.entry.object_id


@dataclass(slots=True)
class Row:
    """
    One revision of the list, or a folded run of revisions.

    Attributes:
        revision: The revision, or the last of a run.
        first: The first revision of a run, or None for a single revision.
        count: The number of revisions in the run.
    """

    revision: Revision
    entries: list[ListedRevision] = field(default_factory=list)
    more: int = 0
    undoes: int | None = None
    undone_by: list[int] = field(default_factory=list)
    first: Revision | None = None
    count: int = 1
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """
    What a user asks of the list.

    Attributes:
        shown: One of the keys of ``SHOWN``.
        search: A part of the name of a policy, project, token or author, or the number of a revision.
        before: Only revisions with a lower number, or None.
        since: Only revisions with this number or a higher one, or None.
        entries: The audit entries that the user may see.
        all_entries: Whether these are all of them.
    """

    shown: str
    search: str
    before: int | None
    since: int | None
    entries: QuerySet[AuditEntry]
    all_entries: bool

    @property
    def folds(self) -> bool:
        return self.shown == "" and not self.search

    def revisions(self) -> QuerySet[Revision]:
        """Return the query of the revisions that have a row of their own, newest first."""
        rows = Revision.objects.filter(kind__in=SHOWN[self.shown]).order_by("-number")
        if self.before is not None:
            rows = rows.filter(number__lt=self.before)
        if self.since is not None:
            rows = rows.filter(number__gte=self.since)
        if not self.all_entries:
            rows = rows.filter(number__in=revisions_of(self.entries))
        return rows.filter(self._searched()) if self.search else rows

    def _searched(self) -> Q:
        words = self.search
        named = self.entries.filter(object_label__icontains=words)
        if self.shown not in ("everything", "tokens"):
            named = named.exclude(object_type="token")
        by = self.entries.filter(actor__icontains=words)
        found = Q(number__in=revisions_of(named)) | Q(number__in=revisions_of(by))
        return found | Q(number=int(words)) if words.isdecimal() and len(words) < 18 else found


def revisions_of(entries: QuerySet[AuditEntry], before: int | None = None, after: int | None = None) -> QuerySet[Any]:
    """Return a query of the numbers of the revisions between two that published these audit entries."""
    changes = entries.exclude(change="").order_by().values("change")
    published = PublishedChange.objects.filter(change__in=changes, revision__isnull=False)
    return _between(published, "revision", before, after).values("revision")


def _between(rows: QuerySet, column: str, before: int | None, after: int | None) -> QuerySet:
    """Return the rows whose number is below *before* and above *after*. None is no bound."""
    rows = rows if before is None else rows.filter(**{f"{column}__lt": before})
    return rows if after is None else rows.filter(**{f"{column}__gt": after})


def rows_of(query: Query) -> tuple[list[Row], int | None]:
    """Return the rows of a page, and the number before which the next page begins, or None on the last page."""
    found = list(query.revisions().defer("changes")[: A_PAGE + 1])
    shown, rest = found[:A_PAGE], found[A_PAGE:]
    rows = described(shown, query.entries, ENTRIES_SHOWN)
    older = shown[-1].number if rest else None
    if not query.folds:
        return rows, older
    numbers = [row.revision.number for row in rows]
    # What follows the last row of a page that has a next one is on that page.
    last = None if query.since is None else query.since - 1
    gaps = list(zip([query.before, *numbers], [*numbers, last], strict=True))[: len(rows) if rest else None]
    runs = _runs(query, gaps)
    folded: list[Row] = []
    for place in range(len(rows) + 1):
        folded += runs.get(place, [])
        folded += rows[place : place + 1]
    return folded, older


Gap = tuple[int | None, int | None]
"""The numbers of the revisions after and before some, or None at the ends of the list."""


def _runs(query: Query, gaps: list[Gap]) -> dict[int, list[Row]]:
    """Return a folded row for each gap in which there are revisions, in a list, by the place of the gap."""
    if not gaps:
        return {}
    # With one statement for all gaps, because each would look for the entries of the user again.
    before, after = gaps[0][0], gaps[-1][1]
    between = _between(Revision.objects.filter(kind__in=FOLDED), "number", before, after)
    if not query.all_entries:
        # With the bounds again, because the database would look for all revisions of the user's entries first.
        between = between.filter(number__in=revisions_of(query.entries, before, after))
    ends = [When(number__gt=end, then=Value(place)) for place, (_, end) in enumerate(gaps) if end is not None]
    gap = Case(*ends, default=Value(len(gaps) - 1), output_field=IntegerField())
    sums = between.order_by().annotate(gap=gap).values("gap")
    counted = sums.annotate(first=Min("number"), last=Max("number"), count=Count("*"))
    # Of a single gap, all rows are one group, which is there without rows too.
    runs = [run for run in counted if run["count"]]
    known = Revision.objects.defer("changes").in_bulk([run[end] for run in runs for end in ("first", "last")])
    found = {run["gap"]: Row(known[run["last"]], first=known[run["first"]], count=run["count"]) for run in runs}
    for place, row in found.items():
        is_short = row.count <= MOST_SUMMED
        row.summary = _summary(query.entries, *gaps[place]) if is_short else "Tokens and others"
    return {place: [row] for place, row in found.items()}


def _summary(entries: QuerySet[AuditEntry], before: int | None, after: int | None) -> str:
    """Return what the folded revisions between two changed in numbers, such as "Tokens: 24 created, 1 revoked"."""
    changes = _between(PublishedChange.objects.filter(revision__kind__in=FOLDED), "revision", before, after)
    counted = entries.filter(change__in=changes.values("change")).order_by()
    deeds: dict[str, list[str]] = defaultdict(list)
    for action, count in counted.values_list("action").annotate(count=Count("*")).order_by("-count", "action"):
        kind, _, deed = action.partition(".")
        deeds[kind].append(f"{count:,} {VERBS.get(deed, deed.replace('_', ' '))}")
    parts = [f"{PLURALS.get(kind, f'{kind}s')}: {', '.join(said)}" for kind, said in deeds.items()]
    text = "; ".join(parts) or "No change of an operator, such as a repair of the store"
    return text[0].upper() + text[1:]


def described(revisions: Iterable[Revision], entries: QuerySet[AuditEntry], most: int) -> list[Row]:
    """Return a row for each revision, with at most *most* of its audit entries."""
    rows = {revision.number: Row(revision) for revision in revisions}
    published = PublishedChange.objects.filter(revision__in=rows)
    owners = dict(published.values_list("change", "revision"))
    for number, undone in published.exclude(undoes=None).values_list("revision", "undoes"):
        rows[number].undoes = undone
    undone_by = PublishedChange.objects.filter(undoes__in=rows, revision__isnull=False)
    for number, later in undone_by.order_by("revision").values_list("undoes", "revision"):
        rows[number].undone_by.append(later)
    numbered = entries.filter(change__in=owners).annotate(
        position=Window(RowNumber(), partition_by=F("change"), order_by=("id",)),
        of_change=Window(Count("*"), partition_by=F("change")),
    )
    shown = list(numbered.filter(position__lte=most).order_by("id"))
    names, tokens = Names.of(shown), _tokens_of(shown)
    for entry in shown:
        row = rows[owners[entry.change]]
        if entry.position == 1:
            row.more += entry.of_change
        if len(row.entries) < most:
            found = lines_of(entry, names)
            more = len(found) - LINES_SHOWN if most == ENTRIES_SHOWN else 0
            one = ListedRevision(entry, found[:LINES_SHOWN] if more > 0 else found, max(more, 0))
            one.tokens = tokens.get(entry.object_id) if entry.object_type == "policy" else None
            row.entries.append(one)
            row.more -= 1
    return list(rows.values())


def _tokens_of(entries: Iterable[AuditEntry]) -> dict[str, int]:
    """Return how many tokens have the policy now, by its id, for each policy of the entries that still exists."""
    ids = {entry.object_id for entry in entries if entry.object_type == "policy"}
    counted = Token.objects.filter(policy__in=ids).order_by().values_list("policy").annotate(count=Count("*"))
    return dict.fromkeys(Policy.objects.filter(pk__in=ids).values_list("pk", flat=True), 0) | dict(counted)


def seconds(lag_ms: int | None) -> str:
    """Return a lag in seconds as people read it, such as "0.4 s", or an empty string if it is unknown."""
    if lag_ms is None:
        return ""
    if lag_ms < LEAST_MS:
        return "less than 0.1 s"
    return f"{lag_ms / 1000:.1f} s" if lag_ms < 60_000 else f"{lag_ms // 60_000} min"


def seconds_since(instant: datetime, now: datetime) -> str:
    """Return the time since an instant as people read it, such as "3.0 s"."""
    return seconds(max(0, round((now - instant).total_seconds() * 1000)))
