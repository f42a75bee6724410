"""One look at everything that rules watch, with at most some hundred commands for the store."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import redis
from django.db.models import Q

from controlplane.core import store
from controlplane.objects.projects.models import Project, Token
from controlplane.operations.alerts.models import RAISED, AlertEvent, AlertRule, Steadiness
from controlplane.operations.alerts.rule_kinds import KINDS
from controlplane.operations.explain import near
from controlplane.operations.explain.holders import Held, held_by, read
from controlplane.operations.explain.live import Now
from controlplane.operations.explain.question import Reach
from enforcement.store.client import STORE_ERRORS

# A look waits so long for a reply. A store that is only busy is not away.
STORE_SECONDS = 2.0
# Two looks that are farther apart leave a gap, in which the store may have been away.
GAP = timedelta(seconds=45)


@dataclass(frozen=True, slots=True)
class Counters:
    """
    The counters of those that were active lately and of those with open events.

    Attributes:
        is_whole: Whether all of them could be read.
    """

    rows: list[tuple[Held, Now]]
    is_whole: bool


@dataclass(slots=True)
class Look:
    """
    The data of one look, which all rules share.

    Attributes:
        away: Why the store could not be read, as a sentence. Empty if it could.
        steady_since: Since when every look has found the store. None: this one has not.
    """

    now: datetime
    rules: list[AlertRule]
    client: redis.Redis = field(default_factory=lambda: store.connection(STORE_SECONDS))
    away: str = ""
    steady_since: datetime | None = None
    _counters: Counters | None = None

    def begin(self) -> None:
        """Ask the store whether it is there, a second time if it did not answer, and save since when it is."""
        for _ in range(2):
            try:
                store.StoreState.read(self.client)
            except STORE_ERRORS as exc:
                self.away = store.reason_of(exc)
            else:
                self.away = ""
                break
        self.steady_since = self._steady_since()

    def _steady_since(self) -> datetime | None:
        before = Steadiness.objects.filter(number=1).first()
        since, away_since = None, before.away_since if before is not None else None
        found: dict[str, datetime | None] = {"looked_at": self.now}
        if not self.away:
            # The clock may have been set back since.
            goes_on = before is not None and before.steady_since and abs(self.now - before.looked_at) <= GAP
            since = before.steady_since if before is not None and goes_on else self.now
            if away_since:
                found |= {"was_away_since": away_since, "was_away_until": self.now}
        found |= {"steady_since": since, "away_since": (away_since or self.now) if self.away else None}
        Steadiness.objects.update_or_create(number=1, defaults=found)
        return since

    def counters(self) -> Counters:
        """
        Return the counters that rules about limits watch, read once for all of them.

        Raises:
            One of STORE_ERRORS: The store is unavailable.
        """
        if self._counters is None:
            self._counters = self._read()
        return self._counters

    def _read(self) -> Counters:
        reach = self._reach()
        names, _ = near.candidates_of(reach, self.now)
        pending = self._pending()
        ids = [pk for pk in (*pending, *(token for _, token in names)) if pk]
        tokens = {token.pk: token for token in reach.tokens.filter(pk__in=ids).select_related("project")}
        projects = reach.projects.filter(pk__in={*pending, *(project for project, _ in names)})
        ordered = [tokens[pk] for pk in dict.fromkeys(ids) if pk in tokens]
        held = held_by(ordered, projects, self.now)
        # Those with open events first, because only a counter that was read says that something is over.
        held.sort(key=lambda one: (one.holder.pk if one.holder else "") not in pending)
        rows = list(read(self.client, held, self.now))
        return Counters(rows, len(rows) == len(held))

    def _reach(self) -> Reach:
        """Return the projects of which rules watch limits, which are all of them if one such rule has no project."""
        watched = [rule.project_id for rule in self.rules if KINDS[rule.kind].limits]
        if None in watched:
            return Reach(Project.objects.all(), Token.objects.all(), True)
        projects = Project.objects.filter(pk__in=watched)
        return Reach(projects, Token.objects.filter(project__in=watched), False)

    def _pending(self) -> Counter[str]:
        """Return the ids of the tokens and projects that open events are about."""
        rows = AlertEvent.objects.filter(Q(state=RAISED, resolved_at=None), rule__in=[rule.pk for rule in self.rules])
        return Counter(holder for data in rows.values_list("data", flat=True) if (holder := data.get("holder")))
