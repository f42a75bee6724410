"""How long a server is unavailable, as a background thread sees it, and when to try it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from enforcement.store.breaker import jittered

FIRST_PROBE_SECONDS: Final = 0.05
LONGEST_PROBE_SECONDS: Final = 1.25
"""Each probe opens a connection. At this pace they are more than a second apart."""
REFUSED_PROBE_SECONDS: Final = 2.0
"""For a store that refuses the account. Nobody repairs that within a second."""
STEADY_SECONDS: Final = 10.0
"""If the store is lost again sooner, the probes continue at their last pace. Each return costs a few slow decisions."""

TRIES: Final = 3
"""How many decisions a server must make in time, one after the other, before it is used again."""


class Absence:
    """
    Tracks since when the store is unavailable, and paces the probes.

    Args:
        monotonic: Returns seconds.

    Attributes:
        since_us: When it became unavailable, in microseconds of the store's time. None: the store is available.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.since_us: int | None = None
        self._monotonic = monotonic
        self.reset()

    def reset(self) -> None:
        """Forget the earlier outages, as the thread is about to start."""
        self._probes = 0
        self._ended_at = float("-inf")
        self._refused = False

    def begin(self, now_us: int) -> None:
        """Begin an outage, with short pauses again unless the last one ended only moments ago."""
        self.since_us = now_us
        if self._monotonic() - self._ended_at > STEADY_SECONDS:
            self._probes = 0

    def end(self) -> None:
        """End the outage, because the store decides again."""
        self.since_us = None
        self._ended_at = self._monotonic()
        self._refused = False

    def note(self, cause: str) -> None:
        """Keep whether *cause* is ``auth``, for which the store could not decide the last time. Empty: it could."""
        self._refused = cause == "auth"

    def pause(self) -> float:
        """
        Count a try, and return how many seconds to wait before the store is tried again.

        This is a random part of a growing time, so that instances which lost the store in one moment do not return in
        one.
        """
        longest = min(LONGEST_PROBE_SECONDS, FIRST_PROBE_SECONDS * 2.0 ** min(self._probes, 10))
        self._probes += 1
        if self._refused:
            longest = REFUSED_PROBE_SECONDS
        return jittered(longest, least=0.5 if longest < LONGEST_PROBE_SECONDS else 0.8)


class PacedAbsence(Absence):
    """
    An absence that also keeps when the next try is due, for a thread that has other work between two tries.

    Attributes:
        due_at: When the next try is due, in the seconds of the clock. It is past until the absence has begun.
    """

    due_at = 0.0

    def is_due(self) -> bool:
        """
        Return whether a try is due now, and begin the pause before the next one.

        The first call begins the absence, and returns False.
        """
        now = self._monotonic()
        begins = self.since_us is None
        if begins:
            self.begin(0)
        elif now < self.due_at:
            return False
        self.due_at = now + self.pause()
        return not begins
