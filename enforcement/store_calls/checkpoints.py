"""
Build the calls that checkpoint durable counters and restore them after the store has lost them. No I/O.

For each hash tag, the functions keep a "dirty" set of the durable counters that changed (``lua/checkpoint.lua``). The
control plane reads these counters, keeps them in SQL and removes them from the set. A store that has lost the counters
of a tag has also lost this set. Enforcers then decide the durable limits of the tag without the store, until all
counters are restored.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Final

from enforcement.lua import function
from enforcement.model.instants import HOUR_SECONDS, SECOND_US
from enforcement.model.keys import NAME_LENGTH, Keys
from enforcement.model.sizes import MAX_NUMBER

CHECKPOINT: Final = function("checkpoint")
CHECKPOINTED: Final = function("checkpointed")
RESTORE: Final = function("restore")
RESTORE_CARRIED: Final = function("restore_carried")
SAY_WHOLE: Final = function("whole")

SET_BACK_US: Final = HOUR_SECONDS * SECOND_US
"""An older reading was not delayed. The store's clock was set back."""

Call = tuple[str, list[str], list[str | int]]
"""Function, keys and arguments for ``FCALL``."""


@dataclass(frozen=True, slots=True)
class Carried:
    """
    The part of a counter with a rollover that is not the usage of its window.

    Attributes:
        number: The number of its window.
        before: The number of the last earlier window that was charged. It is *number* if there is none.
        had: Permits that this earlier window had.
        spent: Permits that were used of them.
        life_us: How long the counter is kept after the end of its window, in microseconds.
        has: Permits that its own window has.
    """

    number: int
    before: int
    had: int
    spent: int
    life_us: int
    has: int = 0


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """
    The state of a durable counter.

    Attributes:
        counter: The last part of its key.
        used: Permits charged in its window.
        ends_us: End of the window, microseconds since the epoch. 0: it never ends.
        last_us: Instant of its last charge, microseconds since the epoch.
        stamp: Increases with each checkpoint of the counter. It is 0 for a counter that was lost and began anew.
        carried: None for a counter without a rollover.
    """

    counter: str
    used: int
    ends_us: int
    last_us: int
    stamp: int
    carried: Carried | None = None

    @property
    def kept_until_us(self) -> int | None:
        """When a counter with a rollover may be forgotten, microseconds since the epoch. None: it has none."""
        return self.ends_us + self.carried.life_us if self.carried else None


@dataclass(frozen=True, slots=True)
class CheckpointReading:
    """A counter that a checkpoint has read, and the stamp that it had ``before``."""

    kept: StoredCheckpoint
    before: int

    def follows(self, kept: StoredCheckpoint | None) -> bool:
        """
        Return whether this reading is later than the kept state and may replace it.

        It is not if the counter does not know the kept checkpoint, because it was lost and began anew.
        """
        if kept is None:
            return True
        if self.kept.ends_us > kept.ends_us:
            return not self.forgot(kept)
        if self.kept.ends_us < kept.ends_us:  # A late reading, unless the store's clock was set back.
            return kept.stamp - self.kept.stamp > SET_BACK_US
        return self.before >= kept.stamp

    def forgot(self, kept: StoredCheckpoint | None) -> bool:
        """
        Return whether the kept state must be restored, because the counter does not know it and counts the same window,
        or a later one that carries what this window left.
        """
        if kept is None or self.before >= kept.stamp:
            return False
        carries = self.kept.carried is not None and kept.carried is not None
        return self.kept.ends_us == kept.ends_us or (carries and self.kept.ends_us > kept.ends_us)


def read_call(keys: Keys, tag: str, counters: Sequence[str]) -> Call:
    """
    Return the function, keys and arguments of a call that reads and stamps counters of one tag. :func:`readings` reads
    the reply.
    """
    return CHECKPOINT, _keys(keys, tag, counters), [""]


def readings(counters: Sequence[str], reply: Sequence[Sequence[int]]) -> Iterator[CheckpointReading]:
    """Yield a reading of each counter, except of those that are gone or have impossible numbers."""
    for counter, found in zip(counters, reply, strict=True):
        if found and all(0 <= number <= MAX_NUMBER for number in found):
            used, ends_us, last_us, before, stamp, *carried = found
            checkpoint = StoredCheckpoint(
                counter, used, ends_us, last_us, stamp, Carried(*carried) if carried else None
            )
            yield CheckpointReading(checkpoint, before)


def strike_call(keys: Keys, tag: str, counters: Sequence[str], read: Sequence[CheckpointReading]) -> Call:
    """
    Return the function, keys and arguments of a call that strikes counters off the dirty set.

    It strikes those that are gone, or that are still as they were read.
    """
    by_name = {reading.kept.counter: reading.kept for reading in read}
    arguments: list[str | int] = []
    for counter in counters:
        checkpoint = by_name.get(counter)
        arguments += ("", "", "") if checkpoint is None else (checkpoint.used, checkpoint.ends_us, checkpoint.last_us)
    return CHECKPOINTED, [keys.dirty(tag), *_keys(keys, tag, counters)], arguments


def restore_calls(keys: Keys, tag: str, kept: Sequence[StoredCheckpoint]) -> Iterator[Call]:
    """
    Yield the function, keys and arguments of each call that raises counters of one tag to their kept states. The reply
    is how many were written.

    Once all counters of a tag are restored, :func:`whole_call` lets enforcers use the store again.
    """
    plain = [one for one in kept if one.carried is None]
    carrying = [one for one in kept if one.carried is not None]
    for function_, some in ((RESTORE, plain), (RESTORE_CARRIED, carrying)):
        arguments: list[str | int] = [""]
        for one in some:
            arguments += [one.used, one.ends_us, one.last_us, one.stamp]
            arguments += astuple(one.carried) if one.carried else ()
        if some:
            yield function_, _keys(keys, tag, [one.counter for one in some]), arguments


def new_mark() -> str:
    """
    Return a new random mark, which the caller adds to the dirty sets of tags before their first counter is restored.
    """
    return "w" + secrets.token_urlsafe(NAME_LENGTH)[: NAME_LENGTH - 1]


def whole_call(keys: Keys, tag: str, mark: str) -> Call:
    """
    Return the function, keys and arguments of a call that lets enforcers use the store for a tag. Its reply is 0 if
    *mark* was lost meanwhile.
    """
    return SAY_WHOLE, [keys.dirty(tag)], [mark]


def _keys(keys: Keys, tag: str, counters: Sequence[str]) -> list[str]:
    scope = keys.scope(tag)
    return [scope + counter for counter in counters]
