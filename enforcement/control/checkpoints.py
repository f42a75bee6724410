"""
Counters that outlive the store: what to ask for a checkpoint of them, and how to give them back. No I/O.

The functions write down, in one set a hash tag, which durable counters changed (``lua/checkpoint.lua``). The control
plane reads those, keeps them in SQL, and strikes them out of the set. A store that lost a tag's counters lost the set
too; until it is told that it is whole again, enforcers decide the tag's durable limits without it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from enforcement.lua import function
from enforcement.model.instants import HOUR_SECONDS, SECOND_US
from enforcement.model.keys import NAME_LENGTH, Keys
from enforcement.model.sizes import MAX_NUMBER

CHECKPOINT: Final = function("checkpoint")
CHECKPOINTED: Final = function("checkpointed")
RESTORE: Final = function("restore")
SAY_WHOLE: Final = function("whole")

SET_BACK_US: Final = HOUR_SECONDS * SECOND_US
"""Nothing that was read takes so long to be kept."""

Call = tuple[str, list[str], list[str | int]]
"""Function, keys, arguments: what ``FCALL`` takes."""


@dataclass(frozen=True, slots=True)
class Kept:
    """
    What a durable counter held.

    Attributes:
        counter: The last part of its key.
        used: Permits charged in its window.
        ends_us: End of the window, microseconds since the epoch; 0: it never ends.
        last_us: Instant of its last charge.
        stamp: Grows with each checkpoint of the counter; of a counter that began anew it is 0.
    """

    counter: str
    used: int
    ends_us: int
    last_us: int
    stamp: int


@dataclass(frozen=True, slots=True)
class CheckpointReading:
    """A counter as a checkpoint read it, and the stamp that it had ``before``."""

    kept: Kept
    before: int

    def follows(self, kept: Kept | None) -> bool:
        """
        Tell whether this is a later state of what is kept, and may replace it.

        It is not, if the counter has forgotten the checkpoint that is kept: it was lost, and began anew.
        """
        if kept is None or self.kept.ends_us > kept.ends_us:
            return True
        if self.kept.ends_us < kept.ends_us:  # it was read too long ago; or the store's clock was set back, and counts
            return kept.stamp - self.kept.stamp > SET_BACK_US
        return self.before >= kept.stamp

    def forgot(self, kept: Kept | None) -> bool:
        """Tell whether the counter shall get back what is kept, for it counts the same window and does not know it."""
        return kept is not None and self.kept.ends_us == kept.ends_us and self.before < kept.stamp


def read_call(keys: Keys, tag: str, counters: Sequence[str]) -> Call:
    """Return the call that reads and stamps counters of one tag; :func:`readings` reads the reply."""
    return CHECKPOINT, _keys(keys, tag, counters), [""]


def readings(counters: Sequence[str], reply: Sequence[Sequence[int]]) -> Iterator[CheckpointReading]:
    """Yield what was read of *counters*; those that are no more are left out, and such as nobody can have counted."""
    for counter, found in zip(counters, reply, strict=True):
        if found and all(0 <= number <= MAX_NUMBER for number in found):
            used, ends_us, last_us, before, stamp = found
            yield CheckpointReading(Kept(counter, used, ends_us, last_us, stamp), before)


def strike_call(keys: Keys, tag: str, counters: Sequence[str], read: Sequence[CheckpointReading]) -> Call:
    """Return the call that strikes out of the dirty set what is still as it was *read*, and what is no more."""
    by_name = {reading.kept.counter: reading.kept for reading in read}
    arguments: list[str | int] = []
    for counter in counters:
        kept = by_name.get(counter)
        arguments += ("", "", "") if kept is None else (kept.used, kept.ends_us, kept.last_us)
    return CHECKPOINTED, [keys.dirty(tag), *_keys(keys, tag, counters)], arguments


def restore_call(keys: Keys, tag: str, kept: Sequence[Kept]) -> Call:
    """
    Return the call that raises counters of one tag to what is kept of them; it answers how many were written.

    When the store has got all of a tag, :func:`whole_call` lets enforcers trust it again.
    """
    arguments: list[str | int] = [""]
    for one in kept:
        arguments += [one.used, one.ends_us, one.last_us, one.stamp]
    return RESTORE, _keys(keys, tag, [one.counter for one in kept]), arguments


def new_mark() -> str:
    """Return what to add to the dirty sets of some tags before the first of their counters is given back."""
    return "w" + secrets.token_urlsafe(NAME_LENGTH)[: NAME_LENGTH - 1]


def whole_call(keys: Keys, tag: str, mark: str) -> Call:
    """Return the call that lets enforcers trust the store with a tag; it answers 0 if *mark* was lost meanwhile."""
    return SAY_WHOLE, [keys.dirty(tag)], [mark]


def _keys(keys: Keys, tag: str, counters: Sequence[str]) -> list[str]:
    scope = keys.scope(tag)
    return [scope + counter for counter in counters]


__all__ = [
    "CheckpointReading",
    "Kept",
    "new_mark",
    "read_call",
    "readings",
    "restore_call",
    "strike_call",
    "whole_call",
]
