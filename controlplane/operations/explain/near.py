"""
Tokens and projects that are near a limit, and those that run out first.

Counters have digests for names, so nobody can list those that are nearly full. Candidates are the tokens and projects
that were active or denied in the last minutes, the busiest first. Only their counters are read.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import chain
from operator import or_

import redis
from django.core.exceptions import EmptyResultSet
from django.db import connection
from django.db.models import Q, QuerySet, Sum

from controlplane.core.periods import start_of
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain.counts import window_of
from controlplane.operations.explain.forecast import HISTORY, Forecast, foretell
from controlplane.operations.explain.holders import MOST_COMMANDS, Held, held_by, read
from controlplane.operations.explain.live import Now
from controlplane.operations.explain.question import Reach
from controlplane.traffic.usage.models import DeniedRequest, UsageRow
from enforcement.model.instants import HOUR_SECONDS

NEAR = 0.8
ACTIVE = timedelta(minutes=5)
# A forecast by hours says nothing of a shorter window.
HOUR = timedelta(seconds=HOUR_SECONDS)
MOST_CANDIDATES = 600
# On a page that shows the first of them beside much else.
FEW_CANDIDATES = 200
# Above this number, those in the same step of UsageRow.STEPS have no order, so the busiest may be missed.
MOST_A_MINUTE = 2_000
MOST_FORETOLD = 100
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Near:
    """
    A limit of which at least NEAR is used.

    Attributes:
        holder: The token or project. None: all requests together.
        share: Used permits by the quota.
        resets_at: When it resets. None: never.
        admits_at: If nothing is left, when it admits again, if that is sooner than it resets. None: then, or never.
        forecast: When it runs out. None: it is not foretold.
    """

    holder: Token | Project | None
    held: Held
    now: Now
    share: float
    resets_at: datetime | None
    admits_at: datetime | None
    forecast: Forecast | None

    @property
    def urgency(self) -> tuple[bool, datetime, float]:
        """Sorts those that run out soonest first, then those that reset before, the fullest first."""
        at = self.forecast.at if self.forecast else None
        return at is None, at or NEVER, -self.share


@dataclass(frozen=True, slots=True)
class NearList:
    """
    Those near a limit, the most urgent first.

    Attributes:
        candidates: How many tokens and projects were looked at.
        is_cut: Whether there were more, or more counters of them, than could be looked at.
    """

    rows: list[Near]
    candidates: int
    is_cut: bool


def near_list(
    reach: Reach, now: datetime, client: redis.Redis, most: int = MOST_COMMANDS, candidates: int = MOST_CANDIDATES
) -> NearList:
    """
    Return those who are near a limit and whom the asker may see, from *most* commands. Nothing is charged.

    Args:
        candidates: How many tokens and projects are looked at.
    Raises:
        One of STORE_ERRORS: The store is unavailable.
    """
    names, is_cut = candidates_of(reach, now, candidates)
    # All others are refused, however much is left of their limits.
    live = Token.objects.live(now).filter(project__active=True, pk__in=[token for _, token in names if token])
    tokens = list(reach.tokens.filter(pk__in=live.values("pk")).select_related("project"))
    projects = reach.projects.filter(active=True, pk__in={project for project, _ in names})
    held = held_by(_in_order(tokens, names), projects, now)
    seen = [one for one in held if one.holder is not None or reach.everything]
    counters = list(read(client, seen, now, most))
    return NearList(nearest(counters, now), len(names), is_cut or len(counters) < len(seen))


def nearest(counters: Iterable[tuple[Held, Now]], now: datetime, least: float = NEAR) -> list[Near]:
    """
    Return those of the counters of which a share of at least *least* is used, with forecasts, the most urgent first.

    Of the fullest 100, those of long windows are foretold from their history.
    """
    full = [(held, count) for held, count in counters if share_of(held, count) >= least]
    full.sort(key=lambda pair: -share_of(*pair))
    foretold = [held for held, _ in full[:MOST_FORETOLD]]
    history = _history(foretold, now)
    rows = [_near(held, count, history.get(held.key, {}), now) for held, count in full]
    return sorted(rows, key=lambda near: near.urgency)


def share_of(held: Held, count: Now) -> float:
    """Return the used share of a limit, with what was carried over. 0 for a quota of 0, which nobody can use."""
    limit = held.rule.limit
    whole = max(limit.capacity, count.used + count.remaining) if limit.rollover else limit.capacity
    return count.used / whole if whole else 0.0


def candidates_of(reach: Reach, now: datetime, most: int = MOST_CANDIDATES) -> tuple[list[tuple[str, str]], bool]:
    """
    Return *most* (project, token) that were active lately, those with denials first, and whether there are more.

    Of a minute with more than MOST_A_MINUTE of them, those with the highest activity are looked at.
    """
    recent = UsageRow.objects.filter(period="minute", policy_id="", limit_name="")
    # Their ids, because PostgreSQL would join a query for them to each row.
    seen = (
        recent if reach.everything else recent.filter(project_id__in=list(reach.projects.values_list("pk", flat=True)))
    )
    names = _busiest(seen, now, most + 1)
    # By a limit. A project that is not active would otherwise fill the list with tokens that are near none.
    sampled = DeniedRequest.objects.filter(at__gte=now - ACTIVE).exclude(project_id="").exclude(policy_id="")
    sampled = sampled if reach.everything else sampled.filter(project_id__in=reach.projects.values("pk"))
    pairs = sampled.order_by().values_list("project_id", "token_id").distinct()[: most + 1]
    both = list(dict.fromkeys([*pairs, *names]))
    return both[:most], len(both) > most


def _busiest(rows: QuerySet[UsageRow], now: datetime, most: int) -> list[tuple[str, str]]:
    """Return *most* (project, token) of rows of the last minutes, those with most denials and then most requests."""
    minute, first = start_of("minute", now), start_of("minute", now - ACTIVE)
    minutes = [first + timedelta(minutes=number) for number in range((minute - first) // timedelta(minutes=1) + 1)]
    # Each minute by itself, so that the index has its rows in order. Those to come are by another clock.
    parts = [rows.filter(at=at) for at in minutes] + [rows.filter(at__gt=minute)]
    columns = ("project_id", "token_id", "denied", "allowed")
    ordered = [part.order_by("-activity", "-id").values_list(*columns)[:MOST_A_MINUTE] for part in parts]
    try:
        read = [part.query.sql_with_params() for part in ordered]
    except EmptyResultSet:  # nobody can have such a project
        return []
    # A union of the ORM cannot be summed, and not be made of such parts on SQLite.
    union = " UNION ALL ".join(f"SELECT * FROM ({sql}) AS part" for sql, _ in read)
    order = "SUM(denied) DESC, SUM(allowed) DESC, project_id, token_id"
    names = (
        f"SELECT project_id, token_id FROM ({union}) AS parts GROUP BY project_id, token_id ORDER BY {order} LIMIT %s"
    )
    with connection.cursor() as cursor:
        cursor.execute(names, [*chain.from_iterable(parameters for _, parameters in read), most])
        return [(project, token) for project, token in cursor.fetchall()]


def _in_order(tokens: list[Token], names: list[tuple[str, str]]) -> list[Token]:
    known = {token.pk: token for token in tokens}
    return [known[pk] for _, pk in names if pk in known]


def _near(held: Held, count: Now, history: Mapping[datetime, int], now: datetime) -> Near:
    resets_at = None if count.reset_ms is None else now + timedelta(milliseconds=count.reset_ms)
    forecast = _forecast(held, count, history, now)
    return Near(held.holder, held, count, share_of(held, count), resets_at, _admits_at(count, now), forecast)


def _admits_at(count: Now, now: datetime) -> datetime | None:
    if count.remaining or not count.more_ms or count.more_ms >= (count.reset_ms or 0):
        return None
    return now + timedelta(milliseconds=count.more_ms)


def _forecast(held: Held, count: Now, history: Mapping[datetime, int], now: datetime) -> Forecast | None:
    limit = held.rule.limit
    if not count.remaining:
        return Forecast(now)
    window = window_of(limit, now)
    if limit.calendar == "lifetime":
        since = min(history, default=now)
        return foretell(
            history, used=sum(history.values()), remaining=count.remaining, since=since, now=now, until=None
        )
    if window is None:
        return None  # it gives back as time goes on, so it has no instant at which it runs out
    since, until = window
    hours = history if until - since > HOUR else {}
    return foretell(hours, used=count.used, remaining=count.remaining, since=since, now=now, until=until)


def _history(held: list[Held], now: datetime) -> dict[tuple[str, str, str, str], dict[datetime, int]]:
    """Return the permits of the last weeks by the hour for each of the limits with windows over an hour."""
    keys = [one.key for one in held if _is_long(one, now)]
    hours = UsageRow.objects.filter(period="hour", at__gte=start_of("hour", now - HISTORY))
    result: dict[tuple[str, str, str, str], dict[datetime, int]] = defaultdict(dict)
    ways = {"token": ("token_id", {}), "anonymous": ("project_id", {"token_id": ""}), "project": ("project_id", {})}
    for scope, (column, more) in ways.items():
        wanted = [Q(**{column: pk}, policy_id=policy, limit_name=name) for of, pk, policy, name in keys if of == scope]
        rows = hours.filter(reduce(or_, wanted, Q(pk__in=[])), **more).order_by()
        sums = rows.values_list(column, "policy_id", "limit_name", "at").annotate(total=Sum("cost"))
        for pk, policy, name, at, total in sums if wanted else ():
            result[scope, pk, policy, name][at] = total
    return result


def _is_long(held: Held, now: datetime) -> bool:
    limit = held.rule.limit
    window = window_of(limit, now)
    return limit.calendar == "lifetime" or (window is not None and window[1] - window[0] > HOUR)
