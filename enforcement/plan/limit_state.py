"""Describe one limit at the time of a decision."""

from __future__ import annotations

from dataclasses import dataclass

from enforcement.model.algorithms import HOPELESS
from enforcement.model.calendars import window
from enforcement.model.lease_bounds import unused_max
from enforcement.plan.binding import BoundLimit


@dataclass(frozen=True, slots=True)
class LimitState:
    """
    The state of one limit after a decision.

    Attributes:
        name: The limit's name.
        policy: The slug of its policy. Empty for a limit in code.
        quota: Permits per window, with the override applied.
        remaining: The largest integer cost that would pass now, after this request.
        reset_ms: Milliseconds until the limit is full again, which is the end of a fixed window. None: never.
        retry_after_ms: Milliseconds until the same cost passes. None if it passed, or if no wait helps.
        more_ms: Milliseconds until more permits remain. None: never.
        allowed: Whether this limit alone would allow the request.
        hopeless: Whether the cost exceeds the limit's capacity, so that no wait helps.
        window_seconds: The length of the present window. None for a lifetime limit and for concurrency.
        slot_seconds: The lifetime of a slot. None for every algorithm except concurrency.
        overflow: Whether its counter is the overflow counter, which all values beyond the project's cap share.
        unused_max: Permits that may be unused in the leases of all processes. 0 if the limit is not leased.
    """

    name: str
    policy: str
    algorithm: str
    unit: str
    mode: str
    quota: int
    capacity: int
    remaining: int
    reset_ms: int | None
    retry_after_ms: int | None
    more_ms: int | None
    allowed: bool
    hopeless: bool
    window_seconds: int | None
    slot_seconds: int | None = None
    overflow: bool = False
    unused_max: int = 0

    @property
    def share(self) -> float:
        """
        The share of a full limit that remains, 0 if it admits nothing. Above 1 if permits were carried from earlier
        windows.
        """
        return self.tightness[0]

    @property
    def tightness(self) -> tuple[float, float]:
        """The pair of numbers by which limits are sorted, the tightest first. See :func:`tightness`."""
        # A full window does not include permits that earlier windows may leave.
        full = self.quota if self.algorithm == "fixed_window" else self.capacity
        return tightness(self.remaining, full, self.window_seconds or self.slot_seconds)


def tightness(remaining: int, full: int, window_seconds: int | None) -> tuple[float, float]:
    """
    Return a sort key by which the smallest share left comes first, and of equal ones the longest window.

    Args:
        full: Permits of a full limit.
    """
    share = remaining / full if full else 0.0
    return share, float("-inf") if window_seconds is None else -window_seconds


def seconds(span_ms: int) -> int:
    """Return a span of milliseconds in whole seconds, rounded up."""
    return -(-span_ms // 1_000)


def state_of(
    bound: BoundLimit, fleet: int, now_us: int, held: int, remaining: int, reset: int, wait: int, more: int
) -> LimitState:
    limit = bound.limit
    return LimitState(
        name=limit.name,
        policy=bound.policy_slug,
        algorithm=limit.algorithm,
        unit=limit.unit,
        mode=limit.mode,
        quota=limit.quota,
        capacity=limit.capacity,
        remaining=max(0, held + remaining),
        reset_ms=_milliseconds(reset),
        retry_after_ms=_milliseconds(wait) if wait else None,
        more_ms=_milliseconds(more if more else reset),
        allowed=wait == 0,
        hopeless=wait == HOPELESS,
        window_seconds=_window_seconds(bound, now_us),
        slot_seconds=limit.window_seconds if limit.algorithm == "concurrency" else None,
        overflow=bound.overflow,
        unused_max=unused_max(limit, fleet) if fleet else 0,
    )


def _window_seconds(bound: BoundLimit, now_us: int) -> int | None:
    limit = bound.limit
    if limit.algorithm == "concurrency" or limit.calendar == "lifetime":
        return None
    if limit.calendar is None:
        return limit.window_seconds
    start, end = window(now_us, limit.calendar, limit.time_zone, limit.anchor)
    return (end - start) // 1_000_000


def _milliseconds(span_us: int) -> int | None:
    return None if span_us < 0 else -(-span_us // 1_000)
