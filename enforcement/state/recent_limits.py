"""Remember the few limits of which something was seen lately, such as a full register of values."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_LIMITS: Final = 20
"""Limits in one report."""
RECENT_SECONDS: Final = 600.0
"""How long a limit is reported after it was seen last."""

LimitName = tuple[str, ...]
"""Project id, policy id or slug, name of the limit, and for a limit that is not supported the reason."""


class RecentLimits:
    """The limits that were noted last. Any thread may note one."""

    def __init__(self) -> None:
        self._seen: OrderedDict[LimitName, float] = OrderedDict()

    def note(self, name: LimitName, now: float) -> None:
        """Add a limit, or move it to the end, with the time *now* in monotonic seconds."""
        self._seen[name] = now
        try:
            self._seen.move_to_end(name)
            if len(self._seen) > MAX_LIMITS:
                self._seen.popitem(last=False)
        except KeyError:  # another thread has just dropped it
            pass

    def at(self, now: float) -> list[LimitName]:
        """Return a list of the limits noted in the RECENT_SECONDS before *now*, at most the last MAX_LIMITS."""
        return [name for name, seen in self._seen.copy().items() if now - seen < RECENT_SECONDS]

    def clear(self) -> None:
        """Forget all limits."""
        self._seen.clear()
