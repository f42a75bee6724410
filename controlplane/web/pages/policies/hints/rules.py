"""Advice on limits that are valid and may be unwise. It never prevents that a policy is saved."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from controlplane.changes.words.describe import amount
from controlplane.core.money import permits
from enforcement.model.instants import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, WEEK_SECONDS
from enforcement.model.instants import duration as in_words
from enforcement.model.limits import Limit

# About as long as each calendar window is.
CALENDAR_SECONDS = {
    "minute": MINUTE_SECONDS,
    "hour": HOUR_SECONDS,
    "day": DAY_SECONDS,
    "week": WEEK_SECONDS,
    "month": 30 * DAY_SECONDS,
    "year": 365 * DAY_SECONDS,
}


@dataclass(frozen=True, slots=True)
class Advice:
    """A sentence beside a field of a limit. ``kind`` is "warn", or "info" for what is usual and good to know."""

    field: str
    text: str
    kind: str = "warn"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def warnings(limits: Mapping[str, Limit], default_cap: int | None = None) -> dict[str, list[Advice]]:
    """
    Return what may be unwise about each limit of a policy.

    Args:
        limits: The valid limits of a form by any name of their row.
        default_cap: The output tokens that a request without a cap of its own is charged, None if that is not set.
    """
    result: dict[str, list[Advice]] = {row: list(_alone(limit, default_cap)) for row, limit in limits.items()}
    for (row, limit), (_, other) in permutations(limits.items(), 2):
        result[row] += _beside(limit, other)
    return result


def _alone(limit: Limit, default_cap: int | None) -> Iterator[Advice]:
    if limit.unit == "requests" and limit.quota and limit.capacity < 1:
        yield Advice("burst", "No request fits, because each costs 1.")
    if default_cap and limit.unit in ("tokens", "output_tokens") and 0 < limit.capacity < default_cap:
        charged = f"A request without a cap is charged {default_cap:,} output tokens"
        yield Advice("quota", f"{charged}, which never fit into {limit.capacity:,}.")


def _beside(limit: Limit, other: Limit) -> Iterator[Advice]:
    """Yield what is unwise about a limit because of another one that counts the same requests."""
    if (limit.unit, set(limit.partition_by), limit.match) != (other.unit, set(other.partition_by), other.match):
        return
    mine, its = _seconds(limit), _seconds(other)
    if mine is None or its is None or not (limit.quota and other.quota):
        return
    if mine == its and _kind(limit) == _kind(other):
        if limit.quota >= other.quota:
            yield Advice("quota", f"{other.name} counts the same, with {amount(other)}. The lower quota decides.")
    elif mine < its and other.quota <= limit.quota:
        text = f"This limit never decides, because {other.name} admits only {amount(other)}."
        yield Advice("quota", text)
    elif mine < its and other.quota * mine < limit.quota * its:
        lasts = in_words(_rounded(other.quota * mine // limit.quota))
        text = (
            f"The longer window decides. At {amount(limit)} {other.name} ({permits(other.quota, other.unit)}) is used "
            f"up in {lasts}. To allow this pace all the time, raise {other.name} to "
            f"{permits(-(-limit.quota * its // mine), limit.unit)}."
        )
        yield Advice("quota", text, "info")


def _seconds(limit: Limit) -> int | None:
    """Return the length of the window, or None for a limit without a rate."""
    if limit.algorithm == "concurrency":
        return None
    return CALENDAR_SECONDS.get(limit.calendar) if limit.calendar else limit.window_seconds


def _kind(limit: Limit) -> bool:
    """Return whether a limit enforces, because a shadow limit beside it is a trial of another quota."""
    return limit.mode == "enforce"


def _rounded(seconds: int) -> int:
    """Return a duration with at most two units that matter."""
    if seconds >= DAY_SECONDS:
        return seconds // HOUR_SECONDS * HOUR_SECONDS
    return seconds // MINUTE_SECONDS * MINUTE_SECONDS if seconds >= HOUR_SECONDS else seconds
