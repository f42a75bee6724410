"""Read the store's reply to a decision or a lease."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from enforcement.model.algorithms import HOPELESS
from enforcement.plan.binding import BoundLimit
from enforcement.store.errors import StoreError
from enforcement.store.resp import numbers

PLAIN: Final = 4
"""How many numbers each limit has in a reply without marks."""
MARKED: Final = 5
"""How many numbers each limit has in a reply to a call with an id."""

NOT_RESTORED: Final = -3
"""The head of a reply while lost durable counters are not restored. The call read and wrote nothing."""


class Reply:
    """
    The reply of the store, or of this process in its place.

    A limit is addressed by the index of its bound in the plan. All durations are in microseconds.

    Args:
        numbers: The result, the store's time in microseconds since the epoch, and *width* numbers for each limit. The
            result of a decision is 1 (allowed) or 0 (denied), and that of a lease the granted permits. Below 0 it is
            the reason why the store did not decide.
        width: :data:`PLAIN`, or :data:`MARKED` if each limit also names the window that was charged.
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
        """Whether the store decided the request or the lease."""
        return self.numbers[0] >= 0

    @property
    def passed(self) -> bool:
        """Whether the request is allowed."""
        return self.numbers[0] == 1

    @property
    def granted(self) -> int:
        """The permits that a lease was granted."""
        return self.numbers[0]

    @property
    def lost(self) -> bool:
        """Whether the store did not decide, because it lost durable counters that are not restored yet."""
        return self.numbers[0] == NOT_RESTORED

    @property
    def now_us(self) -> int:
        """The store's time, in microseconds since the epoch."""
        return self.numbers[1]

    @property
    def minute(self) -> int:
        """The store's time in minutes since the epoch, rounded down."""
        return self.numbers[1] // 60_000_000

    def remaining(self, index: int) -> int:
        """Return the permits that limit *index* has left in the store. Leased permits are not included."""
        return self.numbers[2 + self.width * index]

    def reset(self, index: int) -> int:
        """
        Return the microseconds until limit *index* is full again, below 0 for never.

        Returns:
            Microseconds. Below 0: never.
        """
        return self.numbers[3 + self.width * index]

    def wait(self, index: int) -> int:
        """
        Return the microseconds until the same cost passes limit *index*, 0 for now and below 0 for never.

        Returns:
            Microseconds. 0: it passes now. Below 0: no wait helps.
        """
        return self.numbers[4 + self.width * index]

    def more(self, index: int) -> int:
        """
        Return the microseconds until limit *index* has more permits left, 0 for :meth:`reset`, below 0 for never.

        Returns:
            Microseconds. 0: the same as :meth:`reset`. Below 0: never.
        """
        return self.numbers[5 + self.width * index]

    def mark(self, index: int) -> int:
        """Return the mark of the window that limit *index* charged, for a settlement. Only a marked reply has it."""
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
        """Yield the bounds whose limits admit the request, each with its index."""
        return ((i, bound) for i, bound in enumerate(bounds) if self.wait(i) == 0)

    def reason(self, bounds: Sequence[BoundLimit]) -> str:
        """
        Return the reason of the decision, which is ``ok``, ``limited`` or ``cost_exceeds_capacity``.

        Returns:
            ``ok`` if the request is allowed. ``cost_exceeds_capacity`` if it can never pass one of the enforced limits.
            ``limited`` if it can pass later.
        """
        if self.passed:
            return "ok"
        hopeless = (not bounds[i].limit.shadow for i, wait in enumerate(self.waits()) if wait == HOPELESS)
        return "cost_exceeds_capacity" if any(hopeless) else "limited"

    def later(self, passed_us: int) -> Reply:
        """
        Return the same denial as it is *passed_us* microseconds later. Its durations get shorter, but not below 1.
        """
        numbers, width = list(self.numbers), self.width
        numbers[1] += passed_us
        for start in range(3, len(numbers), width):
            spans = numbers[start : start + 3]
            numbers[start : start + 3] = [max(1, span - passed_us) if span > 0 else span for span in spans]
        return Reply(numbers, width)


NO_REPLY: Final = Reply((0, 0))
"""The reply of a decision for which no counter was read."""


def read(raw: object, width: int = PLAIN) -> Reply:
    """
    Return a reply of the store as a :class:`Reply`.

    Raises:
        StoreError: The reply is not a string of 64-bit integers.
    """
    return Reply(numbers(raw), width)


def read_plain(raw: object, width: int) -> tuple[Reply, Sequence[int]]:
    """
    Return a reply that registered no values as :class:`Reply`, with an empty sequence, as :func:`read_enrolled` does.
    """
    return read(raw, width), ()


def read_enrolled(raw: object, width: int) -> tuple[Reply, Sequence[int]]:
    """
    Return the reply to a decision that registered partition values, and for each value 1 if it overflowed, or 0.

    Returns:
        The reply, and for each value 1 if its overflow counter decided, else 0.
    Raises:
        StoreError: The reply has another form.
    """
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], list):
        raise StoreError("protocol", f"reply: must be a list that begins with a list, got {raw!r:.80}")
    return Reply(raw[0], width), raw[1:]


__all__ = ["MARKED", "NOT_RESTORED", "NO_REPLY", "PLAIN", "Reply", "read", "read_enrolled", "read_plain"]
