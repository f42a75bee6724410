"""
The time and the decisions of the fleet without the store, by day.

An instance that cannot reach the store cannot report that there. Afterwards it reports how many decisions it made
without the store. If that number has grown between two heartbeats, the store was unavailable at some time between them.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from controlplane.traffic.fleet.models import Instance

# A key of Instance.decisions, beside the counters of the heartbeat. Its value is such as
# {"2026-11-24": {"decisions": 12, "ms": 4000}}.
BY_DAY = "fallback_by_day"
DAYS_KEPT = 8
# Another key. Its value is such as {"2026-11-24T15": 12}, without hours in which the store answered.
BY_HOUR = "fallback_by_hour"
HOURS_KEPT = DAYS_KEPT * 24


@dataclass(frozen=True, slots=True)
class Outage:
    """The decisions of the fleet without the store, and the longest time that one instance may have been cut off."""

    decisions: int
    at_most: timedelta


def note(instance: Instance, before: Instance | None) -> None:
    """Set the decisions by day of *instance*, from its row *before* and its decisions without the store since then."""
    days = dict(before.decisions.get(BY_DAY, {})) if before else {}
    alone, since = _since(instance, before)
    if alone:
        day = instance.seen_at.date().isoformat()
        held = days.get(day, {"decisions": 0, "ms": 0})
        lasted = max(instance.seen_at - since, timedelta()) // timedelta(milliseconds=1)
        days[day] = {"decisions": held["decisions"] + alone, "ms": held["ms"] + lasted}
    if days:
        instance.decisions[BY_DAY] = dict(sorted(days.items())[-DAYS_KEPT:])
    if hours := _hours(instance, before, alone):
        instance.decisions[BY_HOUR] = hours


def _hours(instance: Instance, before: Instance | None, alone: int) -> dict[str, int]:
    """Return the decisions without the store by hour, with *alone* more in the hour of the heartbeat."""
    hours: dict[str, int] = dict(before.decisions.get(BY_HOUR, {})) if before else {}
    if alone:
        hour = _hour(instance.seen_at)
        hours[hour] = hours.get(hour, 0) + alone
    return dict(sorted(hours.items())[-HOURS_KEPT:])


def since_hour(start: datetime) -> int:
    """Return the decisions of all instances without the store since the beginning of an hour, at most 8 days ago."""
    first = _hour(start)
    held = [instance.decisions.get(BY_HOUR, {}) for instance in Instance.objects.only("decisions")]
    return sum(number for hours in held for hour, number in hours.items() if hour >= first)


def _hour(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H")


def of_day(day: date) -> Outage:
    """Return an Outage of the decisions of all instances without the store on *day* and the longest time of one."""
    days = [instance.decisions.get(BY_DAY, {}).get(day.isoformat()) for instance in Instance.objects.all()]
    known = [held for held in days if held]
    longest = max((held["ms"] for held in known), default=0)
    return Outage(sum(held["decisions"] for held in known), timedelta(milliseconds=longest))


def _since(instance: Instance, before: Instance | None) -> tuple[int, datetime]:
    """Return the number of decisions without the store since the row *before*, and the instant of that row."""
    alone = instance.decisions["fallback"]
    if before is None or before.started_at != instance.started_at:
        return alone, instance.started_at or instance.seen_at  # a new process counts from its start
    return max(alone - before.decisions.get("fallback", 0), 0), before.seen_at
