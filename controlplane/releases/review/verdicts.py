"""What shadow limits saw, from the usage that enforcers counted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import QuerySet, Sum

from controlplane.changes.audit.models import AuditEntry
from controlplane.changes.words.effects import CANDIDATE
from controlplane.core.money import permits, quantity
from controlplane.core.sums import read_sums, sums
from controlplane.objects.policies.models import Limit, Policy
from controlplane.releases.preview.words import percent
from controlplane.traffic.callers.kinds import DAY
from controlplane.traffic.usage.models import UsageRow
from enforcement.model.limits import Limit as LimitValue

# A verdict on less than this would be a guess.
LEAST_REQUESTS = 50
LEAST_TIME = DAY
# A caller that loses more should hear of it first.
LARGE_SHARE = 0.15
MOST_AFFECTED = 10
# Until there are hours enough, minutes count.
FEW_HOURS = timedelta(hours=3)
ENTRIES_READ = 50
COUNTS = ("allowed", "denied", "would_deny")


@dataclass(frozen=True, slots=True)
class Watched:
    """The requests of one token that a shadow limit counted."""

    token_id: str
    requests: int
    would_deny: int

    @property
    def share(self) -> float:
        return self.would_deny / self.requests if self.requests else 0.0


class WatchedHour(NamedTuple):
    """The requests that a shadow limit counted in an hour or minute. Those that it would deny are allowed, too."""

    at: datetime
    allowed: int
    would_deny: int
    denied: int


@dataclass(frozen=True, slots=True)
class ShadowVerdict:
    """
    What a shadow limit saw in the last 24 hours, or since it has its present numbers.

    Attributes:
        limit: The shadow limit.
        enforced: The limit of which it measures another quota, or None.
        since: When it got its present numbers.
        starts: Start of what is counted here.
        callers: Tokens with requests under it.
        requests: Their requests.
        would_deny: Requests that it would have denied.
        caught: Tokens with at least one of them.
        denied_now: Requests that the enforced limit denied in the same time.
        affected: The tokens with most of them.
    """

    limit: Limit
    enforced: Limit | None
    since: datetime
    starts: datetime
    now: datetime
    callers: int = 0
    requests: int = 0
    would_deny: int = 0
    caught: int = 0
    denied_now: int = 0
    affected: list[Watched] = field(default_factory=list)
    hours: list[WatchedHour] = field(default_factory=list)

    @property
    def is_early(self) -> bool:
        """Whether there is too little to judge by."""
        return self.requests < LEAST_REQUESTS or self.now - self.since < LEAST_TIME

    @property
    def watched_hours(self) -> int:
        return int((self.now - self.since).total_seconds() // 3600)

    @property
    def large(self) -> list[Watched]:
        """The most affected tokens that would lose a large share of their requests."""
        return [one for one in self.affected if one.share > LARGE_SHARE]

    @property
    def quota(self) -> str:
        """The quota in words, such as "1,200 input tokens"."""
        return quantity(self.limit.quota, self.limit.unit)

    @property
    def enforced_quota(self) -> str:
        return permits(self.enforced.quota, self.enforced.unit) if self.enforced else ""

    @property
    def sentence(self) -> str:
        if not self.requests:
            return f"{self.limit.name} ({self.quota}): no data, because no request matched it."
        callers = "caller" if self.callers == 1 else "callers"
        return (
            f"{self.limit.name} ({self.quota}) would have denied {self.would_deny:,} of {self.requests:,} requests "
            f"({percent(self.would_deny, self.requests)}), of {self.caught:,} of {self.callers:,} {callers}."
        )

    @property
    def why_early(self) -> str:
        hours = self.watched_hours
        watched = "under an hour" if hours < 1 else f"{hours:,} hour{'' if hours == 1 else 's'}"
        requests = "1 request" if self.requests == 1 else f"{self.requests:,} requests"
        return f"Too early: {requests} in {watched}. It takes 24 hours and {LEAST_REQUESTS} requests."


def verdicts_of(policy: Policy, now: datetime, projects: Collection[str] | None = None) -> list[ShadowVerdict]:
    """
    Return what each shadow limit of a policy saw.

    Args:
        projects: The ids of the projects that the reader may see. None: all of them.
    """
    limits = list(policy.limits.all())
    by_name = {limit.name: limit for limit in limits}
    shadows = [limit for limit in limits if limit.mode == "shadow"]
    return [_verdict(policy, limit, by_name, now, projects) for limit in shadows]


def _verdict(
    policy: Policy, limit: Limit, by_name: Mapping[str, Limit], now: datetime, projects: Collection[str] | None
) -> ShadowVerdict:
    since = watched_since(policy, limit.name)
    starts = max(since, now - DAY)
    rows = UsageRow.objects.filter(policy_id=policy.pk, at__lte=now)
    if projects is not None:
        rows = rows.filter(project_id__in=projects)
    rows = _from(rows, starts, now)
    own = rows.filter(limit_name=limit.name)
    by_token = own.order_by().values("token_id").annotate(**sums(COUNTS))
    asked = _asked(limit, own, starts, now)
    watched = [_watched(row["token_id"], read_sums(row, COUNTS), asked) for row in by_token]
    enforced = by_name.get(limit.name.removesuffix(CANDIDATE)) if limit.name.endswith(CANDIDATE) else None
    denied = rows.filter(limit_name=enforced.name).aggregate(sum=Sum("denied"))["sum"] if enforced else 0
    affected = sorted((one for one in watched if one.would_deny), key=lambda one: (-one.would_deny, one.token_id))
    return ShadowVerdict(
        limit=limit,
        enforced=enforced,
        since=since,
        starts=starts,
        now=now,
        callers=len(watched),
        requests=sum(one.requests for one in watched),
        would_deny=sum(one.would_deny for one in watched),
        caught=len(affected),
        denied_now=denied or 0,
        affected=affected[:MOST_AFFECTED],
        hours=list(_hours(own)),
    )


def _watched(token: str, counts: Mapping[str, int], asked: Mapping[str, int]) -> Watched:
    """
    Return the requests of a token that a limit has judged.

    It also judges those that another limit denies, and counts in ``would_deny`` alone which of them it would have
    denied. So the number of all requests is taken, if every request is judged.
    """
    allowed, denied, would_deny = counts.values()
    return Watched(token, max(allowed + denied, would_deny, asked.get(token, 0)), would_deny)


def _asked(limit: Limit, own: QuerySet[UsageRow], starts: datetime, now: datetime) -> dict[str, int]:
    """Return the requests of each token in the rows *own* of a limit, or nothing if it does not match all of them."""
    value = limit.as_value()
    if value.match.compile(value.partition_by) is not None:
        return {}
    totals = UsageRow.objects.filter(policy_id="", limit_name="", at__lte=now, token_id__in=own.values("token_id"))
    sums = _from(totals, starts, now).order_by().values("token_id").annotate(sum=Sum("allowed") + Sum("denied"))
    return dict(sums.values_list("token_id", "sum"))


def _from(rows: QuerySet[UsageRow], starts: datetime, now: datetime) -> QuerySet[UsageRow]:
    """Return the rows since *starts*, of full hours, or of minutes if there are few hours."""
    if now - starts < FEW_HOURS:
        return rows.filter(period="minute", at__gte=starts.replace(second=0, microsecond=0))
    first = starts.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return rows.filter(period="hour", at__gte=first)


def _hours(rows: QuerySet[UsageRow]) -> Iterator[WatchedHour]:
    for row in rows.order_by("at").values("at").annotate(**sums(COUNTS)):
        allowed, denied, would_deny = read_sums(row, COUNTS).values()
        # Those that another limit denied are in the last number only, see _watched().
        yield WatchedHour(row["at"], max(allowed, would_deny), would_deny, denied)


def watched_since(policy: Policy, name: str) -> datetime:
    """Return when a limit got its present numbers, or when its policy was created if the audit does not say."""
    entries = AuditEntry.objects.filter(object_type="policy", object_id=policy.pk).order_by("-at", "-id")
    for entry in entries.values("at", "before", "after")[:ENTRIES_READ]:
        before, after = (_limit_in(entry[side], name) for side in ("before", "after"))
        if before != after:
            return entry["at"]
    return policy.created_at


def _limit_in(record: Mapping[str, Sequence[Mapping[str, object]]] | None, name: str) -> object:
    return next((limit for limit in (record or {}).get("limits", []) if limit.get("name") == name), None)


def enforced(policy: Policy, name: str) -> list[LimitValue] | None:
    """
    Return the limits of a policy in which a shadow limit is enforced, or None if there is no such limit.

    A candidate takes the place of the limit beside which it was measured.
    """
    rows = {limit.name: limit for limit in policy.limits.all()}
    shadow = rows.get(name)
    if shadow is None or shadow.mode != "shadow":
        return None
    target = name.removesuffix(CANDIDATE)
    if target == name or target not in rows:
        return [row.as_value(mode="enforce") if row.name == name else row.as_value() for row in rows.values()]
    kept = {"consistency": rows[target].consistency, "mode": "enforce", "name": target}
    return [
        shadow.as_value(**kept) if row.name == target else row.as_value() for row in rows.values() if row.name != name
    ]
