"""
What needs a hand in this installation, judged once for whoever asks.

What instances report is judged by :mod:`enforcement.store_calls.health`, as it is for the doctor and for alerts.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.operations.alerts.acknowledging import in_force
from controlplane.operations.alerts.models import Acknowledgement
from controlplane.operations.health.condition import Condition
from controlplane.operations.health.of_fleet import lost_now, of_fleet
from controlplane.operations.health.of_store import of_glass, of_outage, of_outbox, of_quotas, of_store
from controlplane.operations.health.of_traffic import of_alerts, of_bounds, of_denials, of_reservations
from controlplane.traffic.fleet.heartbeats import fleet_now

# What is looked at, in words.
LOOKED_AT = (
    *("the store", "what waits to be published", "saved quotas", "instances", "limits that count nothing"),
    *("caps", "bounds", "reservations", "denials", "alerts"),
)
# Many tabs ask every few seconds. One answer of a process is for all of them.
KEPT_SECONDS = 3.0
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Health:
    """What needs a hand, the worst first and the newest of these, and when that was found out."""

    conditions: tuple[Condition, ...]
    at: datetime


class _Latest:
    """The last answer of this process. Of several threads that miss it, one finds it out anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._health: Health | None = None

    def read(self, now: datetime) -> Health:
        with self._lock:
            if self._health is None or abs((now - self._health.at).total_seconds()) >= KEPT_SECONDS:
                self._health = Health(tuple(ordered(found_now(now))), now)
            return self._health

    def forget(self) -> None:
        with self._lock:
            self._health = None


latest = _Latest()


def health_now(now: datetime) -> Health:
    """Return what needs a hand, which is some seconds old at most."""
    return latest.read(now)


def found_now(now: datetime) -> list[Condition]:
    """Return what needs a hand, found out anew."""
    fleet = fleet_now()
    return [
        *(*of_glass(now), *of_store(fleet, now), *of_outage(now), *of_outbox(now), *of_quotas(now)),
        *of_fleet(fleet, lost_now(now), now),
        *(*of_alerts(), *of_bounds(now), *of_reservations(), *of_denials(now)),
    ]


@dataclass(frozen=True, slots=True)
class Told:
    """Conditions that nobody has answered, and those that somebody takes care of or has muted, each with who did."""

    open: tuple[Condition, ...]
    acknowledged: tuple[tuple[Condition, Acknowledgement], ...]
    muted: tuple[tuple[Condition, Acknowledgement], ...]


def told(conditions: Iterable[Condition], now: datetime) -> Told:
    """Return conditions by what people have said of them. One that got worse, or began anew, is open again."""
    conditions = list(conditions)
    known = in_force([one.subject for one in conditions], now) if conditions else {}
    pairs = [(one, said) for one in conditions if (said := known.get(one.subject)) and _holds(said, one)]
    answered = {one.subject for one, _ in pairs}
    states = (Acknowledgement.ACKNOWLEDGED, Acknowledgement.MUTED)
    acknowledged, muted = (tuple(pair for pair in pairs if pair[1].state == state) for state in states)
    return Told(tuple(one for one in conditions if one.subject not in answered), acknowledged, muted)


def _holds(said: Acknowledgement, one: Condition) -> bool:
    if (one.level, one.weight) > (said.level, said.weight):
        return False
    return said.state == Acknowledgement.MUTED or one.since is None or one.since <= said.at


def ordered(conditions: Iterable[Condition]) -> list[Condition]:
    """Return conditions with the worst first, and of these the newest."""
    newest = sorted(conditions, key=lambda one: one.since or _LONG_AGO, reverse=True)
    return sorted(newest, key=lambda one: -one.level)
