"""Read the store's reply to a decision or a lease, and give its numbers names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from enforcement.model.algorithms import HOPELESS
from enforcement.plan.binding import BoundLimit
from enforcement.store.errors import StoreError
from enforcement.store.resp import numbers

PLAIN: Final = 4
"""Numbers a limit, in a reply without marks."""
MARKED: Final = 5
"""Numbers a limit, in a reply to a call with an id."""

_OTHER_WINDOW: Final = -1
_NOT_RESTORED: Final = -3


class Reply:
    """
    What the store, or this process in its place, answered.

    Limits are addressed by their index among the bounds of the plan. Spans are in microseconds.

    Args:
        numbers: The head (1 admitted or 0 denied, the permits that a lease was granted, or below 0 a reason why nothing
            was decided), the store's time in microseconds since the epoch, and *width* numbers for each limit.
        width: :data:`PLAIN`, or :data:`MARKED` where each limit also names the window that was charged.
    """

    __slots__ = ("numbers", "width")

    def __init__(self, numbers: Sequence[int], width: int = PLAIN) -> None:
        self.numbers = numbers
        self.width = width

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        """Return a number by its position, for programs written when a reply was a tuple."""
        return self.numbers[index]

    def __repr__(self) -> str:
        return f"Reply({self.numbers!r}, {self.width})"

    @property
    def decided(self) -> bool:
        """Whether the store decided at all."""
        return self.numbers[0] >= 0

    @property
    def passed(self) -> bool:
        """Whether the request is admitted."""
        return self.numbers[0] == 1

    @property
    def granted(self) -> int:
        """How many permits a lease was granted."""
        return self.numbers[0]

    @property
    def lost(self) -> bool:
        """Whether the store decided nothing because it lost durable counters and has not got them back."""
        return self.numbers[0] == _NOT_RESTORED

    @property
    def in_other_window(self) -> bool:
        """Whether the store decided nothing because its time lies outside the calendar window that was sent."""
        return self.numbers[0] == _OTHER_WINDOW

    @property
    def now_us(self) -> int:
        """The store's time, microseconds since the epoch."""
        return self.numbers[1]

    @property
    def minute(self) -> int:
        """The store's time, whole minutes since the epoch."""
        return self.numbers[1] // 60_000_000

    def remaining(self, index: int) -> int:
        """Return the permits that limit *index* has left, before those held on lease."""
        return self.numbers[2 + self.width * index]

    def reset(self, index: int) -> int:
        """Return the span until limit *index* is full again. Below 0 means never."""
        return self.numbers[3 + self.width * index]

    def wait(self, index: int) -> int:
        """Return the span until the same cost passes limit *index*. 0 means now, and below 0 that no wait helps."""
        return self.numbers[4 + self.width * index]

    def more(self, index: int) -> int:
        """Return the span until more remains of limit *index*. 0 means the span of :meth:`reset`, and below 0 never."""
        return self.numbers[5 + self.width * index]

    def mark(self, index: int) -> int:
        """Return the mark that settlements name the window of limit *index* by. Only a marked reply has it."""
        return self.numbers[6 + self.width * index]

    def row(self, index: int) -> Sequence[int]:
        """Return :meth:`remaining`, :meth:`reset`, :meth:`wait` and :meth:`more` of limit *index*."""
        start = 2 + self.width * index
        return self.numbers[start : start + 4]

    def waits(self) -> Sequence[int]:
        """Return :meth:`wait` of every limit."""
        return self.numbers[4 :: self.width]

    def marks(self) -> tuple[int, ...]:
        """Return :meth:`mark` of every limit."""
        return tuple(self.numbers[6 :: self.width])

    def charged(self, bounds: Sequence[BoundLimit]) -> Iterator[tuple[int, BoundLimit]]:
        """Yield the bounds that this reply admits, each with its index."""
        return ((i, bound) for i, bound in enumerate(bounds) if self.wait(i) == 0)

    def reason(self, bounds: Sequence[BoundLimit]) -> str:
        """Return ``ok`` or the reason of the denial. If no wait helps one limit, none helps the request."""
        if self.passed:
            return "ok"
        hopeless = (not bounds[i].limit.shadow for i, wait in enumerate(self.waits()) if wait == HOPELESS)
        return "cost_exceeds_capacity" if any(hopeless) else "limited"

    def later(self, passed_us: int) -> Reply:
        """Return the same denial as of *passed_us* microseconds later, its spans shortened to 1 at least."""
        numbers, width = list(self.numbers), self.width
        numbers[1] += passed_us
        for start in range(3, len(numbers), width):
            spans = numbers[start : start + 3]
            numbers[start : start + 3] = [max(1, span - passed_us) if span > 0 else span for span in spans]
        return Reply(numbers, width)


NO_REPLY: Final = Reply((0, 0))
"""Of a decision for which no counter was read."""


def read(raw: object, width: int = PLAIN) -> Reply:
    """
    Read a reply as it came.

    Raises:
        StoreError: It is not a string of 64-bit integers.
    """
    return Reply(numbers(raw), width)


def read_plain(raw: object, width: int) -> tuple[Reply, Sequence[int]]:
    """Return :func:`read` in the form of :func:`read_enrolled`."""
    return read(raw, width), ()


def read_enrolled(raw: object, width: int) -> tuple[Reply, Sequence[int]]:
    """
    Read the reply to a decision that enrolled values.

    Returns:
        The reply, and for each value 1 if its overflow counter decided, or 0.
    Raises:
        StoreError: It is something else.
    """
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], list):
        raise StoreError("protocol", f"not the reply of an enrolment: {raw!r:.80}")
    return Reply(raw[0], width), raw[1:]


__all__ = ["MARKED", "NO_REPLY", "PLAIN", "Reply", "read", "read_enrolled", "read_plain"]
