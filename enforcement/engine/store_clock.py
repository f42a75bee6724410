"""The store's time between its replies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from enforcement.store.base_client import StoreClient

JUMP_US: Final = 1_000_000
BACK_US: Final = 10_000
# How much faster or slower than this host's the store's clock may go. NTP corrects either by up to 500.
DRIFT_PER_MILLION: Final = 1_000


class StoreClock:
    """
    Estimates the store's time from the monotonic clock of this process.

    The wall clock is read only once for that: if someone sets it while the store is unavailable, no window moves.

    Attributes:
        monotonic: Returns seconds.
        on_jump: Called when the store's clock was set ahead, by more than a reply can be late.
        on_back: Called when this clock went back, so that what was over until now may not be over yet. The store's
            was set back then, or until its first reply that of this host was ahead.
    """

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic
        self.on_jump: Callable[[], None] = lambda: None
        self.on_back: Callable[[], None] = lambda: None
        self._ahead_us = self.wall_us() - self.monotonic_us()  # the store's time minus monotonic time
        # The least and the most that this may be by the replies until now, and when the last call was sent.
        self._bounds: tuple[int, int, int] | None = None

    def now_us(self) -> int:
        """Return the store's time in microseconds since the epoch, or this host's before the store has replied."""
        return int(self.monotonic() * 1_000_000) + self._ahead_us

    def monotonic_us(self) -> int:
        """Return the monotonic time in microseconds."""
        return int(self.monotonic() * 1_000_000)

    def wall_us(self) -> int:
        """Return the time of this host in microseconds since the epoch."""
        return time.time_ns() // 1_000

    def offset_us(self) -> int:
        """Return the store's time minus this host's, in microseconds."""
        return self.now_us() - self.wall_us()

    def set(self, store_us: int, sent_us: int) -> None:
        """
        Set this clock to the store's time from a reply that has just arrived, and call ``on_jump`` or ``on_back``.

        The store read its clock at some instant between the command and the reply. If these are far apart, because the
        store or this process stood still, the middle may be wrong by half of that. So what earlier replies said counts
        too, unless the store's clock was set since.

        Args:
            store_us: The time in the reply.
            sent_us: When its command was sent, by :meth:`monotonic_us`.
        """
        before, received_us = self._ahead_us, self.monotonic_us()
        least, most = store_us - received_us, store_us - sent_us
        if self._bounds is not None:
            known_least, known_most, at_us = self._bounds
            drift = (received_us - at_us) * DRIFT_PER_MILLION // 1_000_000 + 1
            known_least, known_most = known_least - drift, known_most + drift
            if known_least <= most and least <= known_most:
                least, most = max(least, known_least), min(most, known_most)
        self._bounds = least, most, sent_us
        self._ahead_us = (least + most) // 2
        if self._ahead_us - before > JUMP_US:
            self.on_jump()
        elif before - self._ahead_us > BACK_US:
            self.on_back()


def read_clock(client: StoreClient, clock: StoreClock) -> None:
    """Set *clock* to the store's time. Raises redis-py's errors."""
    sent_us = clock.monotonic_us()
    seconds, microseconds = client.time()
    clock.set(seconds * 1_000_000 + microseconds, sent_us)
