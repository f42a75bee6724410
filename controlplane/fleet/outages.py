"""
How long the fleet decided without the store, by day.

An instance that cannot reach the store cannot say so there. What it says afterwards is how many decisions it made
alone: if that number grew between two heartbeats, the store was away from it at some time between them.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from controlplane.fleet.models import Instance

# In Instance.decisions, beside the counters of the heartbeat: {"2026-11-24": {"decisions": 12, "ms": 4000}}.
BY_DAY = "fallback_by_day"
DAYS_KEPT = 8


@dataclass(frozen=True, slots=True)
class Outage:
    """Decisions that the whole fleet made without the store, and the longest time that one instance may have had to."""

    decisions: int
    at_most: timedelta


def note(instance: Instance, before: Instance | None) -> None:
    """Carry over from its row *before* what an instance decided alone, and add what it did since then."""
    days = dict(before.decisions.get(BY_DAY, {})) if before else {}
    alone, since = _since(instance, before)
    if alone:
        day = instance.seen_at.date().isoformat()
        held = days.get(day, {"decisions": 0, "ms": 0})
        lasted = max(instance.seen_at - since, timedelta()) // timedelta(milliseconds=1)
        days[day] = {"decisions": held["decisions"] + alone, "ms": held["ms"] + lasted}
    if days:
        instance.decisions[BY_DAY] = dict(sorted(days.items())[-DAYS_KEPT:])


def of_day(day: date) -> Outage:
    """Add up what the instances say of *day*; those that are long gone say nothing any more."""
    said = [instance.decisions.get(BY_DAY, {}).get(day.isoformat()) for instance in Instance.objects.all()]
    known = [held for held in said if held]
    longest = max((held["ms"] for held in known), default=0)
    return Outage(sum(held["decisions"] for held in known), timedelta(milliseconds=longest))


def _since(instance: Instance, before: Instance | None) -> tuple[int, datetime]:
    """Return how many decisions were made alone since the row *before*, and since when that is."""
    alone = instance.decisions["fallback"]
    if before is None or before.started_at != instance.started_at:
        return alone, instance.started_at or instance.seen_at  # it counts from its start
    return max(alone - before.decisions.get("fallback", 0), 0), before.seen_at
