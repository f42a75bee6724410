"""
Note in which seconds of its minute the requests of a token came, at the precision of the deliveries.

Counts are collected about once a second, in the background. So the time of a collection tells when its requests came,
and no request pays for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from enforcement.model.instants import MINUTE_SECONDS, SECOND_US

Key = tuple[int, str, str, str, str, str]
"""The key of a row of usage, of which the first is the minute."""
Spread = list[int]
"""A bit for each active second of the minute, and then the requests in each of its six parts of ten seconds."""

PART_SECONDS: Final = 10
PARTS: Final = MINUTE_SECONDS // PART_SECONDS
LONGEST_US: Final = 2 * SECOND_US + SECOND_US // 2
"""Requests that were collected over a longer time may have come at any second of it, so nothing is noted of them."""


class SpreadLog:
    """
    The spreads of the counts that wait for delivery. For one thread.

    If the parts of a spread do not add up to the requests of its row, the others came at an unknown second.

    Args:
        now_us: Returns the time, in microseconds since the epoch.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._collected_us: int | None = None
        self._second: int | None = None
        self._spreads: dict[Key, Spread] = {}

    def begin(self) -> None:
        """Take the time of a collection, which begins now."""
        now_us, before_us = self._now_us(), self._collected_us
        self._collected_us = now_us
        # A process that has just started collects after a second too.
        is_recent = before_us is None or 0 <= now_us - before_us <= LONGEST_US
        # The middle of the second that was collected.
        self._second = (now_us - SECOND_US // 2) // SECOND_US if is_recent else None

    def add(self, key: Key, requests: int) -> None:
        """Note that this collection found requests of a row."""
        second = None if self._second is None else self._second - key[0] * MINUTE_SECONDS
        if (
            not requests
            or second is None
            or not -LONGEST_US <= second * SECOND_US < MINUTE_SECONDS * SECOND_US + LONGEST_US
        ):
            return
        second = min(max(second, 0), MINUTE_SECONDS - 1)
        spread = self._spreads.get(key)
        if spread is None:
            spread = self._spreads[key] = [0] * (1 + PARTS)
        spread[0] |= 1 << second
        spread[1 + second // PART_SECONDS] += requests

    def take(self, keys: Iterable[Key]) -> list[list[int]]:
        """Return the spreads of these rows, each behind the index of its row, and forget them."""
        found = ((index, self._spreads.pop(key, None)) for index, key in enumerate(keys))
        return [[index, *spread] for index, spread in found if spread is not None]
