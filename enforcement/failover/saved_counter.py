"""The form in which a local counter is kept on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from enforcement.model.algorithms import Counter, FixedWindow, RollingWindow, SlidingLog, SlidingWindow, TokenBucket

MAX_ENTRIES: Final = 1_000
"""A longer log is saved as one charge at its last instant, which ends no earlier than the charges themselves."""

_FIELDS: Final[Mapping[str, tuple[type[Counter], tuple[str, ...]]]] = {
    "f": (FixedWindow, ("used", "ends", "last")),
    "r": (RollingWindow, ("used", "ends", "last", "number", "before", "had", "spent")),
    "s": (SlidingWindow, ("current", "previous", "last")),
    "l": (SlidingLog, ("instants", "totals")),
    "b": (TokenBucket, ("level", "unit", "last", "since", "idle")),
}
"""By the letter of an algorithm, what a counter of it is made from. Slots end with the process that holds them."""
_LETTERS: Final = {kind: letter for letter, (kind, _) in _FIELDS.items()}


class SavedCounter(NamedTuple):
    """
    A local counter.

    Attributes:
        letter: That of its algorithm.
        values: Its numbers. Those of a log are two lists.
        now: The time of its last charge, microseconds since the epoch.
    """

    key: str
    letter: str
    values: tuple[object, ...]
    now: int

    @staticmethod
    def takes(counter: Counter) -> bool:
        """Return whether a counter can be saved."""
        return type(counter) in _LETTERS

    @classmethod
    def of(cls, key: str, counter: Counter) -> Self:
        """Return the saved form of a counter."""
        letter = _LETTERS[type(counter)]
        if isinstance(counter, SlidingLog) and len(counter.instants) > MAX_ENTRIES:
            return cls(key, letter, ([counter.instants[-1]], [0, counter.used]), counter.now)
        return cls(key, letter, tuple(getattr(counter, name) for name in _FIELDS[letter][1]), counter.now)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Return the SavedCounter whose :meth:`to_json` gave this value. Raises ValueError if it is none."""
        if not isinstance(value, list) or len(value) != 4:
            raise ValueError("a counter must be a key, a letter, numbers and a time")
        key, letter, values, now = value
        if not isinstance(key, str) or letter not in list(_FIELDS):
            raise ValueError("a counter must have a key and the letter of an algorithm")
        values = [math.inf if item is None else item for item in values] if isinstance(values, list) else []
        if len(values) != len(_FIELDS[letter][1]) or type(now) is not int or not all(map(_is_number, values)):
            raise ValueError(f"a counter of {letter!r} must have {len(_FIELDS[letter][1])} numbers")
        lists = [item for item in values if isinstance(item, list)]
        if len(lists) != (2 if letter == "l" else 0) or (lists and len(lists[0]) + 1 != len(lists[1])):
            raise ValueError("a log must have instants and one total more, and another counter no lists")
        return cls(key, letter, tuple(values), now)

    def to_json(self) -> list[object]:
        """Return the counter as a list for JSON, in which None stands for infinity."""
        return [self.key, self.letter, [None if item == math.inf else item for item in self.values], self.now]

    def counter(self) -> Counter:
        """Return a new local counter with the saved values."""
        kind, names = _FIELDS[self.letter]
        counter = kind()
        for name, value in zip(names, self.values, strict=True):
            setattr(counter, name, value)
        counter.now = self.now
        return counter


def _is_number(value: object) -> bool:
    if isinstance(value, list):
        return all(type(item) is int for item in value)
    return type(value) in (int, float)
