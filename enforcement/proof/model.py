"""
Compute how much of a limit a list of charges has used.

A *charge* is an instant in microseconds and a number of permits. This module shares no line with the algorithms that it
checks, so that a defect of theirs cannot hide here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import Final

from enforcement.model.calendars import window
from enforcement.model.limits import Limit

Charge = tuple[int, int]
LIFETIME: Final = (0, 2**63)
_WHOLE: Final = Fraction(1)


def window_of(limit: Limit, at_us: int) -> tuple[int, int]:
    """
    Return the start and the end of the window at an instant, in microseconds since the epoch, or LIFETIME if it never
    ends. A log or a bucket has one window for ever.
    """
    if limit.algorithm in ("sliding_log", "token_bucket") or limit.calendar == "lifetime":
        return LIFETIME
    if limit.calendar is not None:
        return window(at_us, limit.calendar, limit.time_zone, limit.anchor)
    length = length_us(limit)
    start = at_us - at_us % length
    return start, start + length


def length_us(limit: Limit) -> int:
    """Return how many microseconds a window without a calendar lasts."""
    return (limit.window_seconds or 0) * 1_000_000


def peak(limit: Limit, charges: Iterable[Charge], part: Fraction = _WHOLE) -> int:
    """
    Return the most permits of the charges of one window that were in use at any instant.

    A permit of a leased log counts longer in the store, by the time in which it may be handed out after it was charged.
    By the instants of the requests only each window of the limit's own length is bounded.

    Args:
        charges: In the order of their instants. If the limit has windows, the charges of one window.
        part: The part of the limit's rate that could be used. Only a bucket depends on it.
    """
    if limit.algorithm == "sliding_log":
        return _peak_of_log(length_us(limit), list(charges))
    if limit.algorithm == "token_bucket":
        level = max((level for _, level in _levels(limit, charges, part)), default=0)
        return -(-level // _unit(limit, part))
    return sum(permits for _, permits in charges)


def felt(limit: Limit, charges: Sequence[Charge], now_us: int) -> int:
    """Return how many permits of earlier charges still count now, in whole permits as ``remaining`` counts them."""
    if limit.algorithm == "sliding_log":
        counts_us = length_us(limit) + (limit.held_us if limit.leasable else 0)
        return sum(permits for at, permits in charges if at > now_us - counts_us)
    if limit.algorithm == "token_bucket":
        last_us, level = next(iter(deque(_levels(limit, charges, _WHOLE), maxlen=1)), (now_us, 0))
        return -(-max(0, level - (now_us - last_us) * limit.quota) // length_us(limit))
    present = window_of(limit, now_us)
    current = sum(permits for at, permits in charges if present[0] <= at < present[1])
    if limit.algorithm == "fixed_window":
        return current
    length = length_us(limit)
    previous = sum(permits for at, permits in charges if present[0] - length <= at < present[0])
    return current + max(0, ceil(Fraction(previous * (present[1] - now_us), length)) - 1)


def _peak_of_log(length: int, charges: Sequence[Charge]) -> int:
    most, total, first = 0, 0, 0
    for at_us, permits in charges:
        total += permits
        while charges[first][0] <= at_us - length:
            total -= charges[first][1]
            first += 1
        most = max(most, total)
    return most


def _levels(limit: Limit, charges: Iterable[Charge], part: Fraction) -> Iterator[tuple[int, int]]:
    """Yield the instant of each charge and how much a bucket lacks after that charge. One permit is :func:`_unit`."""
    unit, rate = _unit(limit, part), limit.quota * part.numerator
    level, last_us = 0, 0
    for at_us, permits in charges:
        level = max(0, level - (at_us - last_us) * rate) + permits * unit
        last_us = at_us
        yield at_us, level


def _unit(limit: Limit, part: Fraction) -> int:
    return length_us(limit) * part.denominator
