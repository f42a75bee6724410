"""
Names in the intake of a project that nobody knows, counted together.

An account of the store that is limited to the project may write there, and could else make any number of rows in SQL.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import batched

from controlplane.core.periods import start_of
from controlplane.objects.policies.models import Limit, Policy
from controlplane.objects.projects.models import Token
from controlplane.traffic.stream.batches import Row, SettledRow, StreamBatch
from controlplane.traffic.usage.models import MeteredRow, UsageRow
from enforcement.logs import RateLimitedLogger

logger = logging.getLogger(__name__)
often = RateLimitedLogger(logger, seconds=600)

UNKNOWN = "unknown"
TOTAL = ("", "", "requests")
IDS_AT_ONCE = 1000
# The most combinations of models, ways of settlement and revisions of prices, for one project and day. Clients choose
# the names of models, and a process tells 200 of them apart.
MOST_METERED = 1_000

_Metered = tuple[datetime, str, str, int]
# The combinations that SQL has, by project, so that usual usage asks it nothing. It is emptied when it is long.
_met: set[tuple[str, _Metered]] = set()
_MOST_MET = 100_000


def folded(batches: Sequence[StreamBatch], project: str) -> list[StreamBatch]:
    """
    Return the batches from the intake of a project, with made-up names as UNKNOWN.

    A token, limit or policy is known if the project has it or may have it. A token is known as well if it has usage
    from before it was deleted.
    """
    rows = [row for batch in batches for row in batch.rows]
    metered = [row for batch in batches for row in batch.metered]
    tokens = _unknown_tokens({names[1] for batch in batches for names in batch.names}, project)
    limit_of = _limits({row.names[2:] for row in rows}, project)
    beyond = _beyond({_metered_of(row) for row in metered}, project)
    if not (tokens or limit_of or beyond):
        return list(batches)

    def usage(row: Row) -> Row:
        of, names = row.names[:2], row.names[2:]
        return row._replace(names=(*_with_token(of, tokens), *limit_of.get(names, names)))

    def settled(row: SettledRow) -> SettledRow:
        names = (*_with_token(row.names[:2], tokens), *row.names[2:])
        if _metered_of(row) not in beyond:
            return replace(row, names=names)
        return replace(row, names=(*names[:2], "", UNKNOWN), price_revision=0)

    return [_each(batch, usage, settled) for batch in batches]


def _each(batch: StreamBatch, usage: Callable[[Row], Row], settled: Callable[[SettledRow], SettledRow]) -> StreamBatch:
    return replace(batch, rows=tuple(map(usage, batch.rows)), metered=tuple(map(settled, batch.metered)))


def _with_token(names: tuple[str, ...], unknown: Collection[str]) -> tuple[str, ...]:
    return (names[0], UNKNOWN) if names[1] in unknown else names


def _unknown_tokens(ids: set[str], project: str) -> set[str]:
    """Return those of the ids that the project does not have, and of which SQL has no usage."""
    unknown = ids - {"", UNKNOWN}
    for some in batched(sorted(unknown), IDS_AT_ONCE):
        unknown.difference_update(Token.objects.filter(project_id=project, pk__in=some).values_list("pk", flat=True))
    for some in batched(sorted(unknown), IDS_AT_ONCE):
        # A token that was deleted keeps its usage.
        used = UsageRow.objects.filter(token_id__in=some, project_id=project)
        unknown.difference_update(used.values_list("token_id", flat=True).distinct())
    _say("tokens", len(unknown), project)
    return unknown


def _limits(names: set[tuple[str, ...]], project: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return, for policy, name and unit of each limit that no policy has, what stands for it in its policy."""
    unknown, policies = names - {TOTAL}, set[str]()
    for ids in batched(sorted({policy for policy, *_ in unknown}), IDS_AT_ONCE):
        unknown.difference_update(Limit.objects.filter(policy__in=ids).values_list("policy", "name", "unit"))
    for ids in batched(sorted({policy for policy, *_ in unknown}), IDS_AT_ONCE):
        policies.update(Policy.objects.filter(pk__in=ids).values_list("pk", flat=True))
    _say("limits", len(unknown), project)
    return {it: (it[0] if it[0] in policies else UNKNOWN, UNKNOWN, UNKNOWN) for it in unknown}


def _metered_of(row: SettledRow) -> _Metered:
    """Return the day of a row, and what it names besides the token."""
    _, _, model, settled_as = row.names
    return start_of("day", row.at), model, settled_as, row.price_revision


def _beyond(names: set[_Metered], project: str) -> set[_Metered]:
    """Return those with which the project would have more than MOST_METERED in SQL on a day."""
    new = {it for it in names if (project, it) not in _met}
    if not new:
        return new
    rows = MeteredRow.objects.filter(project_id=project, period="day", at__in={day for day, *_ in new})
    present = set(rows.values_list("at", "model", "settled_as", "price_revision").distinct())
    counts: dict[datetime, int] = {}
    for day, *_ in present:
        counts[day] = counts.get(day, 0) + 1
    beyond = set[_Metered]()
    for it in sorted(new - present):
        counts[it[0]] = counts.get(it[0], 0) + 1
        if counts[it[0]] > MOST_METERED:
            beyond.add(it)
    _note(project, new - beyond)
    _say("models", len(beyond), project)
    return beyond


def _note(project: str, names: Iterable[_Metered]) -> None:
    if len(_met) > _MOST_MET:
        _met.clear()
    _met.update((project, it) for it in names)


def _say(what: str, count: int, project: str) -> None:
    if count:
        message = "%d %s in the intake of %s are not known. Their usage is counted together, as that of %r"
        often.warning(f"{what} {project}", message, count, what, project, UNKNOWN)
