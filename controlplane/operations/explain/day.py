"""The decisions of the last 24 hours about a token, a project or a policy, as a small chart and a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import QuerySet

from controlplane.core.periods import DECISIONS, start_of
from controlplane.core.sums import read_sums, sums
from controlplane.objects.policies.models import Policy
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.explain.question import Reach
from controlplane.traffic.usage.models import UsageRow

HOURS = 24
HEIGHT = 64
# The share of the width of an hour that its bar takes, so that bars do not touch.
FILLED = 0.8


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of the chart. x and width are in per cent of the chart, y and height in pixels."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Hour:
    at: datetime
    allowed: int
    denied: int
    would_deny: int


@dataclass(frozen=True, slots=True)
class Day:
    """
    The last 24 hours.

    Attributes:
        counts_limits: Whether each limit of a policy counts, so that one request may count several times.
    """

    hours: tuple[Hour, ...]
    bars: tuple[Bar, ...]
    counts_limits: bool

    @property
    def allowed(self) -> int:
        return sum(hour.allowed for hour in self.hours)

    @property
    def denied(self) -> int:
        return sum(hour.denied for hour in self.hours)

    @property
    def would_deny(self) -> int:
        return sum(hour.would_deny for hour in self.hours)

    @property
    def worst(self) -> Hour | None:
        """The hour with most denials, or None without any."""
        return max((hour for hour in self.hours if hour.denied), key=lambda hour: hour.denied, default=None)


def day_of(row: Token | Project | Policy, reach: Reach, now: datetime) -> Day:
    """Return the last 24 hours of a token, a project or a policy, in the projects that the asker may see."""
    last = start_of("hour", now)
    starts = [last - timedelta(hours=back) for back in reversed(range(HOURS))]
    rows = _rows(row).filter(period="hour", at__gte=starts[0])
    if not reach.everything:
        rows = rows.filter(project_id__in=reach.projects.values("pk"))
    counts = {row["at"]: read_sums(row, DECISIONS) for row in rows.order_by().values("at").annotate(**sums(DECISIONS))}
    hours = tuple(_hour(at, counts.get(at, {})) for at in starts)
    return Day(hours, tuple(bars_of(hours)), isinstance(row, Policy))


def _rows(row: Token | Project | Policy) -> QuerySet[UsageRow]:
    if isinstance(row, Policy):
        return UsageRow.objects.filter(policy_id=row.pk)
    column = "token_id" if isinstance(row, Token) else "project_id"
    return UsageRow.objects.filter(**{column: row.pk}, policy_id="", limit_name="")


def _hour(at: datetime, counts: Mapping[str, int]) -> Hour:
    allowed, denied, would_deny = (counts.get(name, 0) for name in DECISIONS)
    # The rows of shadow limits also count what they would have denied of the requests that another limit denied.
    return Hour(at, allowed, denied, min(would_deny, allowed))


def bars_of(hours: tuple[Hour, ...]) -> list[Bar]:
    """Return the bars of the chart, of which the highest fills the height. Each part that is not 0 can be seen."""
    most = max((hour.allowed + hour.denied for hour in hours), default=0)
    step = 100 / max(len(hours), 1)
    bars = []
    for index, hour in enumerate(hours):
        # A request that a shadow would deny was allowed, so it is counted among those.
        parts = {"allowed": hour.allowed - hour.would_deny, "would": hour.would_deny, "denied": hour.denied}
        floor = float(HEIGHT)
        for kind, number in parts.items():
            if number > 0:
                height = max(1.0, round(HEIGHT * number / most, 1))
                floor = max(0.0, floor - height)
                bars.append(Bar(kind, round(index * step, 2), floor, round(step * FILLED, 2), height))
    return bars
