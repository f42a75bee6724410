"""The callers that a policy concerns, and what is recorded of them."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import batched, chain

import numpy as np
from django.db.models import Q, QuerySet

from controlplane.objects.overrides.models import Override
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.releases.preview.replay import Case, Days, seconds_of_day
from controlplane.releases.preview.supposed import SAVED, Supposed, holder_of, overridden
from controlplane.traffic.callers.chunks import HEAD, Chunk, DaySum, StoredChunk, read_hours
from controlplane.traffic.callers.kinds import ANONYMOUS, EVERYTHING, PROJECT, TOKEN, Caller
from controlplane.traffic.callers.models import RecordedDay
from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS
from enforcement.model.limits import InvalidLimit, Limit

# Parameters of one statement.
AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Span:
    """Whole hours of which a preview tells, in seconds since the epoch, and the hours before that fill the counters."""

    begins: int
    ends: int
    before: int = DAY_SECONDS

    @classmethod
    def of(cls, starts: datetime, ends: datetime) -> "Span":
        """Return the whole hours that hold a range of time."""
        first, last = int(starts.timestamp()), int(ends.timestamp())
        return cls(first - first % HOUR_SECONDS, -(-last // HOUR_SECONDS) * HOUR_SECONDS)

    @property
    def days(self) -> list[date]:
        first, last = ((at // DAY_SECONDS) for at in (self.begins - self.before, self.ends - 1))
        return [date(1970, 1, 1) + timedelta(days=day) for day in range(first, last + 1)]

    @property
    def seconds(self) -> int:
        return self.ends - self.begins


class Callers:
    """
    The tokens and projects that have a policy, or everything together for the global policy.

    The requests without a token of a project are a caller of their own, under the policy that it has for them. Of the
    tokens, only those with recorded requests are read, because a policy may have 500,000 of which few send any.

    Args:
        policy: The saved policy. A new one has no callers.
        span: Of its days, the recorded requests count.
        now: Tokens that have ended before are left out.
        projects: The ids of the projects that the reader may see. None: all of them.
        supposed: The state after a change.
    """

    def __init__(
        self,
        policy: Policy,
        span: Span,
        now: datetime,
        projects: Collection[str] | None = None,
        supposed: Supposed = SAVED,
    ) -> None:
        tokens, seen = Token.objects.live(now), Project.objects.all()
        if projects is not None:
            tokens, seen = tokens.filter(project__in=projects), seen.filter(pk__in=projects)
        conditions = {
            TOKEN: Q(policy=policy.pk),
            PROJECT: Q(policy=policy.pk),
            ANONYMOUS: Q(anonymous_policy=policy.pk),
        }
        for kind, condition in conditions.items() if supposed.is_narrowed else ():
            within = Q(**{"project__in" if kind == TOKEN else "pk__in": supposed.projects})
            conditions[kind] = Q(pk__in=supposed.ids(kind)) | (condition & within)
        tokens = tokens.filter(conditions[TOKEN])
        having, admitting = seen.filter(conditions[PROJECT]), seen.filter(conditions[ANONYMOUS])
        self.policy, self.now, self.visible, self.supposed = policy, now, projects, supposed
        recorded = _days(span.days).exclude(token_id="").order_by().values("token_id")
        self.projects_of = dict(tokens.filter(pk__in=recorded).values_list("pk", "project_id"))
        self.projects = list(having.values_list("pk", flat=True))
        self.open_projects = list(admitting.values_list("pk", flat=True))
        self.are_costs_one = True
        everyone = projects is None and not supposed.is_narrowed
        everything = [(EVERYTHING, "")] if policy.is_global and everyone else []
        # How many have the policy, with those that sent nothing.
        self.concerned = tokens.count() + len(self.projects) + len(self.open_projects) + len(everything)
        self.all: list[Caller] = [
            *((TOKEN, pk) for pk in self.projects_of),
            *((PROJECT, pk) for pk in self.projects),
            *((ANONYMOUS, pk) for pk in self.open_projects),
            *everything,
        ]
        self.places = {caller: place for place, caller in enumerate(self.all)}

    def heads(self, span: Span) -> np.ndarray:
        """
        Return the heads of hours by caller, hour and the names of HEAD, from ``span.begins - span.before`` on.

        Whether each request cost one is known then, too.
        """
        first = seconds_of_day(span.days[0])
        found = np.zeros((len(self.all), len(span.days) * 24, len(HEAD)), np.int64)
        rows = list(self._rows(span.days))
        hours = read_hours([row[3] for row in rows])
        self.are_costs_one = all(allowed == cost for *_, allowed, cost in rows)
        for (project, token, day, *_), of_day in zip(rows, hours, strict=True):
            at = (seconds_of_day(day) - first) // HOUR_SECONDS
            for place in self._places(project, token):
                found[place, at : at + 24] += of_day
        start = (span.begins - span.before - first) // HOUR_SECONDS
        return found[:, start : start + (span.ends - span.begins + span.before) // HOUR_SECONDS]

    def days(self, places: Sequence[int], span: Span, *, stored: bool = False) -> list[Days]:
        """
        Return the recorded days of the callers at these places, whose requests are added up by day.

        Those of tokens are kept as they are *stored*, if that is asked for, which takes less memory.
        """
        chosen = {self.all[place]: number for number, place in enumerate(places)}
        found: list[dict[date, Chunk | StoredChunk | DaySum]] = [{} for _ in places]
        for project, token, day, body in self._rows_of(chosen, span.days):
            chunk = StoredChunk(bytes(body)) if stored else Chunk.read(body)
            for caller in _callers_of(project, token):
                if caller in chosen:
                    _add(found[chosen[caller]], day, chunk)
        return [
            [
                (seconds_of_day(day), held.chunk() if isinstance(held, DaySum) else held)
                for day, held in sorted(of_caller.items())
            ]
            for of_caller in found
        ]

    def case(self, limit: Limit) -> tuple[Case, int]:
        """Return a limit with the quota of each caller, and how many callers have an override."""
        overrides = self._overrides(limit)
        own = [
            overrides.get((kind, pk)) or overrides.get((PROJECT, self.projects_of.get(pk, "") if kind == TOKEN else pk))
            for kind, pk in self.all
        ]
        quotas, bursts = ([getattr(one or limit, name) for one in own] for name in ("quota", "capacity"))
        return Case(limit, quotas, bursts), sum(one is not None for one in own)

    def _overrides(self, limit: Limit) -> dict[Caller, Limit]:
        """Return the limit as each holder of an override has it, if the override fits the limit."""
        present = Q(ends_at=None) | Q(ends_at__gt=self.now)
        # A limit with a counter for each value is not judged.
        rows = Override.objects.filter(present, limit__policy=self.policy.pk, limit__name=limit.name, partition="")
        limits: dict[Caller, Limit] = {}
        for holder, quota, burst in chain(map(_numbers, rows.exclude(pk__in=self.supposed.gone)), self._assumed(limit)):
            try:
                limits[holder] = overridden(limit, quota, burst)
            except InvalidLimit:  # enforcers cannot have it either
                continue
        return limits

    def _assumed(self, limit: Limit) -> Iterator[tuple[Caller, int, int | None]]:
        for override in self.supposed.overrides:
            if override.limit == limit.name:
                yield override.holder, override.quota, override.burst

    def _places(self, project: str, token: str) -> Iterable[int]:
        for caller in _callers_of(project, token):
            place = self.places.get(caller)
            if place is not None:
                yield place

    def _rows(self, days: Sequence[date]) -> Iterator[tuple[str, str, date, bytes, int, int]]:
        """Yield the project, token, day, hours, allowed requests and cost of each recorded day of the callers."""
        rows, names = _days(days), ("project_id", "token_id", "day", "hours", "allowed", "cost")
        if (EVERYTHING, "") in self.places:
            yield from rows.values_list(*names).iterator(chunk_size=AT_ONCE)
            return
        yield from rows.filter(_sent_by((), self.projects, self.open_projects)).values_list(*names)
        others = rows.exclude(project_id__in=self.projects)
        for tokens in batched(self.projects_of, AT_ONCE):
            yield from others.filter(token_id__in=tokens).values_list(*names)

    def _rows_of(
        self, chosen: Collection[Caller], days: Sequence[date]
    ) -> Iterable[tuple[str, str, date, bytes | memoryview]]:
        rows = _days(days)
        if (EVERYTHING, "") not in chosen:
            ids = ([pk for kind, pk in chosen if kind == wanted] for wanted in (TOKEN, PROJECT, ANONYMOUS))
            rows = rows.filter(_sent_by(*ids))
        return rows.values_list("project_id", "token_id", "day", "body").iterator(chunk_size=500)


def _numbers(override: Override) -> tuple[Caller, int, int | None]:
    """Return the holder, the quota and the burst of a saved override."""
    return holder_of(override), override.quota, override.burst


def _days(days: Sequence[date]) -> QuerySet[RecordedDay]:
    return RecordedDay.objects.filter(day__gte=days[0], day__lte=days[-1])


def _sent_by(tokens: Iterable[str], projects: Sequence[str], open_projects: Sequence[str]) -> Q:
    """Return the condition of the rows of tokens, of all tokens of projects, and of projects without a token."""
    of_project = Q(project_id__in=projects) & ~Q(token_id="")
    return Q(token_id__in=tokens) | of_project | Q(project_id__in=open_projects, token_id="")


def _add(days: dict[date, Chunk | StoredChunk | DaySum], day: date, chunk: Chunk | StoredChunk) -> None:
    """Add a chunk to a day. That of a project adds up those of all of its tokens, of which none is kept."""
    held = days.setdefault(day, chunk)
    if held is chunk:
        return
    if not isinstance(held, DaySum):
        days[day] = total = DaySum()
        total.add(held.whole())
        held = total
    held.add(chunk.whole())


def _callers_of(project: str, token: str) -> tuple[Caller, ...]:
    """Return the callers to which the requests of a row count. A project's policy does not count those of no token."""
    everything = (EVERYTHING, "")
    return ((TOKEN, token), (PROJECT, project), everything) if token else ((ANONYMOUS, project), everything)


def hour_of(at: datetime) -> datetime:
    """Return the start of the hour of an instant, in UTC."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
