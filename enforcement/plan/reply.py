"""Read the store's reply to a decision or a lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from enforcement.model.algorithms import HOPELESS
from enforcement.plan.binding import BoundLimit
from enforcement.plan.costs import Costs
from enforcement.store.errors import StoreError
from enforcement.store.resp import numbers

PLAIN: Final = 4
"""How many numbers each limit has in a reply without marks."""
MARKED: Final = 5
"""How many numbers each limit has in a reply to a call with an id."""

OUTSIDE_CALENDAR: Final = -2
"""The reply to a settlement whose calendar windows do not contain the store's time. The call wrote nothing."""
NOT_RESTORED: Final = -3
"""The head of a reply while lost durable counters are not restored. The call read and wrote nothing."""
IS_LOST: Final = -5
"""The reply to a settlement of a reservation that had to be open, and is lost. The call wrote nothing."""
NOT_NOW: Final = frozenset((OUTSIDE_CALENDAR, NOT_RESTORED))
"""Replies to a settlement that is to be repeated later."""


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
        """Return the microseconds until limit *index* is full again, below 0 for never."""
        return self.numbers[3 + self.width * index]

    def wait(self, index: int) -> int:
        """Return the microseconds until the same cost passes limit *index*, 0 for now and below 0 for never."""
        return self.numbers[4 + self.width * index]

    def more(self, index: int) -> int:
        """
        Return the microseconds until limit *index* has more permits left, 0 if that is :meth:`reset`, below 0 for
        never.
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

    def charged(self, bounds: Sequence[BoundLimit]) -> list[tuple[int, BoundLimit]]:
        """Return the index and the bound of each limit that admits the request, as a new list."""
        return [(i, bound) for i, bound in enumerate(bounds) if self.wait(i) == 0]

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

    def rolled(self, bounds: Sequence[BoundLimit], costs: Costs) -> Reply:
        """
        Return the reply with the waits of costs that need what several windows leave, which the store does not know.

        The store's wait is the time until the present window ends. A reply without such waits is returned as it is.
        """
        numbers = list(self.numbers)
        for i, bound in enumerate(bounds):
            if bound.limit.rollover and self.wait(i) > 0:
                wait = bound.rolled_wait(bound.cost_of(costs), self.remaining(i), self.now_us)
                numbers[4 + self.width * i] = wait
        return self if numbers == list(self.numbers) else Reply(numbers, self.width)

    def over(self, old: Sequence[BoundLimit], new: Sequence[BoundLimit]) -> Reply:
        """
        Return a new reply that tells how many permits the *new* bounds have left, by a reply about the *old* ones.

        What was used of a counter stays used if its quota has changed. One that the reply does not tell of is full.
        """
        left = {bound.key: self.remaining(i) - bound.limit.capacity for i, bound in enumerate(old)}
        numbers = [1, self.now_us]
        for bound in new:
            numbers += [max(0, bound.limit.capacity + left.get(bound.key, 0)), 0, 0, 0]
        return Reply(numbers)

    def held_up(self, waits: Mapping[int, int]) -> Reply:
        """Return a new reply that denies a request which would pass, as limit *i* makes it wait for *waits[i]*."""
        numbers = list(self.numbers)
        numbers[0] = 0
        for i, wait in waits.items():
            numbers[4 + self.width * i] = wait
        return Reply(numbers, self.width)

    def later(self, passed_us: int) -> Reply:
        """
        Return a new reply with the same denial as it is *passed_us* microseconds later. Its durations get shorter, but
        not below 1.
        """
        numbers, width = list(self.numbers), self.width
        numbers[1] += passed_us
        for start in range(3, len(numbers), width):
            spans = numbers[start : start + 3]
            numbers[start : start + 3] = [max(1, span - passed_us) if span > 0 else span for span in spans]
        return Reply(numbers, width)


NO_REPLY: Final = Reply((0, 0))
"""The reply of a decision for which no counter was read."""


def read(raw: object, count: int, width: int = PLAIN) -> Reply:
    """
    Return a reply of the store as :class:`Reply`.

    Args:
        raw: The reply, which should be a string of 64-bit integers.
        count: Of how many limits it must tell, unless the store did not decide.
    Raises:
        StoreError: The reply has another form or length.
    """
    found = numbers(raw)
    if len(found) != 2 + width * count and not (len(found) == 2 and found[0] < 0):
        raise _unexpected(raw)
    return Reply(found, width)


def read_enrolled(raw: object, count: int, registered: int, width: int) -> tuple[Reply, Sequence[int]]:
    """
    Return the reply to a decision, and for each value that it registered 1 if its overflow counter decided, else 0.

    Args:
        count: Of how many limits it must tell, unless the store did not decide.
        registered: How many values it registered.
    Raises:
        StoreError: The reply has another form or length.
    """
    found, overflowed = _enrolled(raw, registered)
    if not isinstance(found, list) or not all(type(number) is int for number in found):
        raise _unexpected(raw)
    if len(found) != 2 + width * count and not (len(found) == 2 and found[0] < 0):
        raise _unexpected(raw)
    return Reply(found, width), overflowed


def read_corrected(raw: object, registered: int | None) -> tuple[int, Sequence[int]]:
    """
    Return the reply to a settlement, and for each value that it registered 1 if its correction was left out, else 0.

    Args:
        registered: How many values it registered. None: it was a plain settlement.
    Raises:
        StoreError: The reply has another form or length.
    """
    found, left_out = (raw, ()) if registered is None else _enrolled(raw, registered)
    if type(found) is not int:
        raise _unexpected(raw)
    return found, left_out


def _enrolled(raw: object, count: int) -> tuple[object, Sequence[int]]:
    if not isinstance(raw, list) or len(raw) != 1 + count or any(one not in (0, 1) for one in raw[1:]):
        raise _unexpected(raw)
    return raw[0], raw[1:]


def _unexpected(raw: object) -> StoreError:
    return StoreError("protocol", f"a reply is not what the function returns: {raw!r:.80}")
