"""
Implement the algorithms in pure Python, as the reference for the functions of the store and for local decisions.

Each class holds the state of one counter, in microseconds and permits. The arithmetic is that of
``lua/algorithms.lua``, line by line where possible. Its doubles are integers and exact below 2**53. An instant before
the last charge of a counter counts as the instant of that charge. If the last charge is more than a window ahead, the
clock was set back, and the charges count as made now (``behind``).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from enforcement.model.sizes import MAX_SLOTS_PER_REQUEST

HOPELESS: Final = -1
"""Replaces a wait if the cost exceeds the capacity."""
NEVER: Final = -2
"""Replaces a span if no wait helps, until permits are given back or the counter is reset."""
SLOT_WAIT_US: Final = 1_000_000
"""The wait for a slot. A slot may be free at any moment, and nobody knows which, because its owner renews it."""

_DURABLE_LETTERS: Final = {"f": "d", "r": "k"}
_BOUNDARIES: Final = 4


@dataclass(frozen=True, slots=True)
class Spec:
    """
    A limit as the store's functions see it, with the letter of its algorithm, its capacity and two parameters.

    ====== ================== ================================== =====================================
    letter algorithm          a                                  b
    ====== ================== ================================== =====================================
    f      fixed_window       length, us; 0 with a calendar      boundaries of a calendar, us, or ()
    r      fixed_window that  the quota, of which the capacity   boundaries of a calendar, us; the number of
           has a rollover     is the sum with the rollover       the second window; how long it is kept, us
    s, l   sliding_*          length, us
    b      token_bucket       units that come back each us       units of a permit, as a tuple of one
    c      concurrency        lifetime of a slot, us
    ====== ================== ================================== =====================================
    """

    letter: str
    capacity: int
    a: int
    b: tuple[int, ...] = ()
    shadow: bool = False
    durable: bool = False
    _text: str = field(init=False, repr=False, compare=False, default="")

    @property
    def text(self) -> str:
        """The limit as a string, which is an argument of calls. See ``spec_of`` in ``lua/algorithms.lua``."""
        if not self._text:
            b = ",".join(map(str, self.b))
            letter = _DURABLE_LETTERS[self.letter] if self.durable else self.letter
            text = f"{letter}|{self.capacity}|{self.a}|{b}|{'s' if self.shadow else ''}"
            object.__setattr__(self, "_text", text)
        return self._text

    @property
    def windows(self) -> tuple[int, ...]:
        """The boundaries of the calendar, microseconds since the epoch. Empty without a calendar."""
        return self.b[:_BOUNDARIES] if self.letter in _DURABLE_LETTERS else ()


class OutOfCalendar(Exception):
    """The time is outside of the given boundaries."""


class Counter(Protocol):
    """The methods of every algorithm. The head of ``lua/algorithms.lua`` explains them."""

    behind: bool
    now: int

    def read(self, now: int, spec: Spec) -> None: ...
    def room(self) -> float: ...
    def wait(self, cost: int) -> int: ...
    def reset(self) -> int: ...
    def mark(self) -> int: ...
    def add(self, cost: int, ident: str) -> None: ...
    def amend(self, delta: int, mark: int, ident: str) -> bool: ...


class FixedWindow:
    """
    Permits used in the window that ends at ``ends``. If that is 0, it never ends.

    Attributes:
        rolled: What is known of earlier windows (``number``, ``before``, ``had``, ``spent``) if the limit had a
            rollover in this one. If it gets its rollover back before another window is charged, it goes on with that.
    """

    rolled: tuple[int, int, int, int] | None = None

    def __init__(self) -> None:
        self.used, self.ends, self.last = 0, -1, 0
        self.behind = False

    def read(self, now: int, spec: Spec) -> None:
        self.cap, self.behind = spec.capacity, False
        if now < self.last:
            start, end = _window(now, spec)
            self.behind = self.ends != 0 and self.last - now > end - start
            if self.behind:
                self.ends, self.last, self.rolled = end, now, None
        self.now = max(now, self.last)
        if self.ends == 0 or self.now < self.ends:
            return
        self.used, self.ends, self.rolled = 0, _window(self.now, spec)[1], None

    def room(self) -> float:
        return self.cap - self.used

    def reset(self) -> int:
        return NEVER if self.ends == 0 else self.ends - self.now

    def wait(self, cost: int) -> int:
        return self.reset()

    def mark(self) -> int:
        return self.ends

    def add(self, cost: int, ident: str) -> None:
        self.used += cost
        self.last = self.now

    def amend(self, delta: int, mark: int, ident: str) -> bool:
        if mark != self.ends:
            return False
        self.used = max(0, self.used + delta)
        self.last = self.now
        return True


def _window(now: int, spec: Spec) -> tuple[int, int]:
    """
    Return the start and end of the window that contains *now*, in microseconds since the epoch, or 0 twice for a
    lifetime.
    """
    if not spec.b:
        start = now - now % spec.a if spec.a else 0
        return start, start + spec.a
    found = bisect_right(spec.b, now)
    if not 0 < found < len(spec.b):
        raise OutOfCalendar
    return spec.b[found - 1], spec.b[found]


class RollingWindow:
    """
    Permits used in a window of the calendar, and what an earlier one left, which is carried into the next up to a cap.

    Attributes:
        number: The number of the window that ends at ``ends``. -1: unknown, as it began without a rollover.
        before: The number of the last earlier window that was charged. It is ``number`` if there is none.
        had: Permits that the window ``before`` had.
        spent: Permits that were used of them.
        known: Whether it was charged before. A new counter leaves nothing to the next window.
    """

    def __init__(self) -> None:
        self.used, self.ends, self.last = 0, -1, 0
        self.number, self.before, self.had, self.spent = -1, -1, 0, 0
        self.behind = self.known = False

    def read(self, now: int, spec: Spec) -> None:
        self.cap, self.quota, self.behind = spec.capacity, spec.a, False
        start, end, number = _numbered_window(now, spec)
        if self.last - now > end - start:
            if self.number >= 0:
                self.number, self.before = number, number - (self.number - self.before)
            self.ends, self.last, self.behind = end, now, True
        elif now < self.last:
            now = self.last
            try:
                start, end, number = _numbered_window(now, spec)
            except OutOfCalendar:  # a month after a longer one: the last charge may lie in the window after the next
                if now >= self.ends:
                    raise
                number = spec.b[4] + 2
        self.now, self.known = now, True
        if now < self.ends:
            if self.number < 0:
                self.number = self.before = number
        elif self.number >= 0 and now - self.ends < spec.b[5]:
            if self.used or self.before == self.number:
                had = self.quota + self._carried(self.number)
                self.before, self.had, self.spent = self.number, had, self.used
            self.used, self.ends, self.number = 0, end, max(number, self.number + 1)
        else:
            self.used, self.ends, self.number, self.before, self.had, self.spent = 0, end, number, number, 0, 0
            self.known = False

    def _carried(self, number: int) -> int:
        """Return what is carried into the window of this number. A window that was not charged adds its quota."""
        idle = max(0, number - self.before - 1)
        return min(self.cap - self.quota, max(0, self.had - self.spent) + idle * self.quota)

    def room(self) -> float:
        return self.quota + self._carried(self.number) - self.used

    def reset(self) -> int:
        return self.ends - self.now

    def wait(self, cost: int) -> int:
        return self.reset() if self.known or cost <= self.quota else NEVER

    def mark(self) -> int:
        return self.number

    def add(self, cost: int, ident: str) -> None:
        self.known = True
        self.used += cost
        self.last = self.now

    def amend(self, delta: int, mark: int, ident: str) -> bool:
        if mark in (self.number, self.ends):
            self.used = max(0, self.used + delta)
        elif mark == self.before:
            self.spent = max(0, self.spent + delta)
        elif delta > 0 and self.before < mark < self.number:
            self.had, self.spent, self.before = self.quota + self._carried(mark), delta, mark
        else:
            return False
        self.last = self.now
        return True


def _numbered_window(now: int, spec: Spec) -> tuple[int, int, int]:
    """Return the start and end of the window that contains *now*, in microseconds since the epoch, and its number."""
    found = bisect_right(spec.windows, now)
    if not 0 < found < _BOUNDARIES:
        raise OutOfCalendar
    return spec.b[found - 1], spec.b[found], spec.b[4] + found - 2


class SlidingWindow:
    """
    Permits used in the current window, and in the previous one.

    Those of the previous window leave one by one, as if evenly spaced and the first of them at its start. So a client
    that keeps the limit's pace finds room for each request.
    """

    def __init__(self) -> None:
        self.current, self.previous, self.last = 0, 0, 0
        self.behind = False

    def read(self, now: int, spec: Spec) -> None:
        self.cap, self.length = spec.capacity, spec.a
        self.behind = self.last - now > self.length
        if self.behind:
            self.last = now
        self.now = max(now, self.last)
        self.start = self.now - self.now % self.length
        passed = self.start - (self.last - self.last % self.length)
        if passed:
            self.current, self.previous = 0, self.current if passed == self.length else 0

    def room(self) -> float:
        if self.previous == 0:
            return self.cap - self.current
        left = self.start + self.length - self.now
        return self.cap - self.current - math.ceil(float(self.previous * left) / self.length) + 1

    def wait(self, cost: int) -> int:
        at, fading, room = self.start, self.previous, self.cap - cost - self.current
        if room < 0:
            at, fading, room = self.start + self.length, self.current, self.cap - cost
        return max(1, at + _all_but(room + 1, fading, self.length) - self.now)

    def reset(self) -> int:
        if self.current > 0:
            return self.start + self.length + _all_but(1, self.current, self.length) - self.now
        return max(0, self.start + _all_but(1, self.previous, self.length) - self.now)

    def mark(self) -> int:
        return self.start

    def add(self, cost: int, ident: str) -> None:
        self.current += cost
        self.last = self.now

    def amend(self, delta: int, mark: int, ident: str) -> bool:
        if mark == self.start:
            self.current = max(0, self.current + delta)
        elif mark == self.start - self.length:
            self.previous = max(0, self.previous + delta)
        else:
            return False
        self.last = self.now
        return True


def _all_but(kept: int, previous: int, length: int) -> int:
    """Return how many microseconds into a window all but *kept* permits of the one before it have left, or 0."""
    return math.ceil(float((previous - kept) * length) / previous) if previous > kept else 0


class SlidingLog:
    """Every charge with its instant, and the total before it, so that any sum is one difference."""

    def __init__(self) -> None:
        self.instants: list[int] = []
        self.totals: list[int] = [0]  # one more than instants: totals[i] is the sum before entry i
        self.behind = False

    def read(self, now: int, spec: Spec) -> None:
        self.cap, self.length = spec.capacity, spec.a
        self.now = max(now, self.instants[-1]) if self.instants else now
        gone = bisect_right(self.instants, self.now - self.length)
        self.instants, self.totals = self.instants[gone:], self.totals[gone:]
        self.behind = self.now - now > self.length
        if self.behind:
            self.now, self.instants, self.totals = now, [now], [0, self.used]

    @property
    def used(self) -> int:
        return self.totals[-1] - self.totals[0]

    def room(self) -> float:
        return self.cap - self.used

    def wait(self, cost: int) -> int:
        needed = self.totals[-1] + cost - self.cap
        leaving = max(0, bisect_left(self.totals, needed, 1) - 1)
        return self.instants[leaving] + self.length - self.now

    def reset(self) -> int:
        return self.instants[-1] + self.length - self.now if self.used else 0

    def mark(self) -> int:
        return self.now

    def add(self, cost: int, ident: str) -> None:
        self.instants.append(self.now)
        self.totals.append(self.totals[-1] + cost)

    def amend(self, delta: int, mark: int, ident: str) -> bool:
        if self.behind or mark <= self.now - self.length:
            return False
        costs = [self.totals[i + 1] - self.totals[i] for i in range(len(self.instants))]
        at = bisect_left(self.instants, mark)
        if delta > 0 and (at == len(costs) or self.instants[at] != mark):
            self.instants.insert(at, mark)
            costs.insert(at, 0)
        while delta and at < len(costs) and self.instants[at] == mark:
            changed = max(0, costs[at] + delta)
            delta -= changed - costs[at]
            costs[at] = changed
            at += 1
        remaining = [(instant, cost) for instant, cost in zip(self.instants, costs, strict=True) if cost]
        self.instants = [instant for instant, _ in remaining]
        self.totals = [0]
        for _, cost in remaining:
            self.totals.append(self.totals[-1] + cost)
        return True


class TokenBucket:
    """The units taken out of a bucket, which was last full at ``since``."""

    def __init__(self) -> None:
        self.level, self.unit, self.last, self.since = 0.0, 0, 0, 0
        self.idle = math.inf
        self.behind = False

    def read(self, now: int, spec: Spec) -> None:
        self.cap, self.rate, unit = spec.capacity, spec.a, spec.b[0]
        self.behind = float((self.last - now) * self.rate) > self.cap * unit
        if self.behind:
            self.last = self.since = now
        self.now = max(now, self.last)
        if not self.unit:
            self.level, self.since, self.idle = 0.0, now, math.inf
        else:
            if unit != self.unit:
                self.level = float(math.ceil(self.level * unit / self.unit))
            self.level -= (self.now - self.last) * self.rate
            if self.level <= 0:
                self.idle, self.level, self.since = -self.level, 0.0, self.now
        self.unit = unit

    def room(self) -> float:
        return (self.cap * self.unit - self.level) / self.unit

    def wait(self, cost: int) -> int:
        if self.rate == 0:
            return NEVER
        return math.ceil((self.level + cost * self.unit - self.cap * self.unit) / self.rate)

    def reset(self) -> int:
        if self.level == 0:
            return 0
        return math.ceil(self.level / self.rate) if self.rate else NEVER

    def mark(self) -> int:
        return self.now

    def add(self, cost: int, ident: str) -> None:
        self.level += cost * self.unit
        self.last = self.now

    def amend(self, delta: int, mark: int, ident: str) -> bool:
        units = float(delta * self.unit)
        if delta < 0:
            if mark < self.since or self.level == 0:
                return False
            self.level = max(0.0, self.level + units)
        else:
            if self.level == 0:
                units -= min(self.idle, max(0, self.now - mark) * self.rate)
            if units <= 0:
                return False
            if self.level == 0:
                self.since = min(mark, self.now)
            self.level += units
        self.last = self.now
        return True


class Concurrency:
    """Slots by owner, number and lifetime, each with the instant at which it ends."""

    def __init__(self) -> None:
        self.slots: dict[tuple[str, int, int], int] = {}
        self.ended: dict[tuple[str, int, int], int] = {}
        self.behind = False

    def read(self, now: int, spec: Spec) -> None:
        self.cap, self.life, self.now = spec.capacity, spec.a, now
        # A release keeps what has ended, as in the store: it is held again if the clock goes back a little.
        self.ended = {slot: ends for slot, ends in self.slots.items() if ends <= now}
        self.slots = {slot: ends for slot, ends in self.slots.items() if ends > now}
        # As in ``lua/algorithms.lua``: the last slot tells whether the clock was set back.
        last = max(self.slots.items(), key=lambda row: (row[1], _member(row[0])), default=None)
        self.behind = last is not None and last[1] - now > last[0][2]
        if self.behind:
            self.slots = {slot: min(ends, now + slot[2]) for slot, ends in self.slots.items()}

    @property
    def held(self) -> int:
        return len(self.slots)

    def room(self) -> float:
        return self.cap - self.held

    def wait(self, cost: int) -> int:
        return SLOT_WAIT_US

    def reset(self) -> int:
        return max(self.slots.values(), default=self.now) - self.now

    def mark(self) -> int:
        return 0

    def add(self, cost: int, ident: str) -> None:
        self.slots |= {(ident, number, self.life): self.now + self.life for number in range(1, cost + 1)}

    def amend(self, delta: int, mark: int, ident: str) -> bool:
        if delta > 0:  # slots that were given elsewhere, whether they fit or not
            self.add(delta, ident)
            return True
        self.slots = self.ended | self.slots
        for number in range(1, -delta + 1):
            self.slots.pop((ident, number, self.life), None)
        return True

    def renew(self, ident: str, count: int, now: int, life: int) -> None:
        """Let the slots that are still held end *life* microseconds after *now*."""
        for slot in ((ident, number, life) for number in range(1, count + 1)):
            if self.slots.get(slot, 0) > now:
                self.slots[slot] = now + life


def _member(slot: tuple[str, int, int]) -> str:
    """Return the name of a slot in the store, which orders slots that end at the same instant."""
    ident, number, life = slot
    return f"{ident}:{number}:{life}"


ALGORITHMS: Final[dict[str, type[Counter]]] = {
    "f": FixedWindow,
    "r": RollingWindow,
    "s": SlidingWindow,
    "l": SlidingLog,
    "b": TokenBucket,
    "c": Concurrency,
}

Charge = tuple[str, Spec, int]
"""Key and specification of a counter, and the cost in permits."""


class Reference:
    """
    Counters in this process that reply as the functions of the store do.

    Args:
        max_counters: How many counters are kept. Beyond that, the one not charged for longest is dropped.
    """

    def __init__(self, max_counters: int = 50_000) -> None:
        self.max_counters = max_counters
        self.counters: OrderedDict[str, Counter] = OrderedDict()

    def decide(self, now: int, charges: Sequence[Charge], *, charge: bool = True, ident: str = "") -> list[int]:
        """Decide a request as ``sg3_decide`` does, and return its reply as a list of integers."""
        try:
            rows = [(self._read(key, now, spec), spec, cost) for key, spec, cost in charges]
        except OutOfCalendar:
            return [-1, now]
        waits = [_wait_for(counter, spec, cost) for counter, spec, cost in rows]
        if len(rows) > 1 and sum(cost for _, spec, cost in rows if spec.letter == "c") > MAX_SLOTS_PER_REQUEST:
            _deny_slots(rows, waits)
        passed = all(wait == 0 or spec.shadow for wait, (_, spec, _) in zip(waits, rows, strict=True))
        for wait, (counter, _, cost), (key, _, _) in zip(waits, rows, charges, strict=True):
            if charge and passed and wait == 0 and cost > 0:
                counter.add(cost, ident)
                self._write(key, counter)
            elif charge and counter.behind:
                self._write(key, counter)
        reply = [int(passed), now]
        for wait, (counter, spec, _) in zip(waits, rows, strict=True):
            remaining = math.floor(counter.room())
            reply += [remaining, counter.reset(), wait, _more(counter, spec, remaining)]
            if ident:
                reply.append(counter.mark())
        return reply

    def amend(self, now: int, key: str, spec: Spec, delta: int, mark: int, ident: str = "") -> bool:
        """Correct one charge as ``sg3_settle`` does, and return whether the counter changed."""
        counter = self._read(key, now, spec)
        changed = counter.amend(delta, mark, ident)
        if changed:
            self._write(key, counter)
        return changed

    def begin(self, now: int, key: str, spec: Spec, left: int) -> None:
        """Begin a counter with a rollover that has *left* permits, of which those above its quota were carried."""
        counter = RollingWindow()
        counter.read(now, spec)
        counter.before, counter.had = counter.number - 1, max(0, left - spec.a)
        counter.add(max(0, spec.a - left), "")
        self._write(key, counter)

    def forget(self, keys: Sequence[str]) -> None:
        """Delete counters as ``sg3_reset`` does."""
        for key in keys:
            self.counters.pop(key, None)

    def _read(self, key: str, now: int, spec: Spec) -> Counter:
        """Return a copy of a counter, brought forward to *now*. Only a charge may change the counter itself."""
        stored = self.counters.get(key)
        kind = ALGORITHMS[spec.letter]
        counter = _copy_of(stored) if isinstance(stored, kind) else _begun_as(kind, stored)
        counter.read(now, spec)
        return counter

    def _write(self, key: str, counter: Counter) -> None:
        self.counters[key] = counter
        self.counters.move_to_end(key)
        if len(self.counters) > self.max_counters:
            self.counters.popitem(last=False)


def _copy_of(counter: Counter) -> Counter:
    """Return a copy of a counter. What copy.copy() does besides takes longer than a decision."""
    result = object.__new__(type(counter))
    result.__dict__.update(counter.__dict__)
    return result


def _begun_as(kind: type[Counter], kept: Counter | None) -> Counter:
    """Return a new counter. A fixed window that got a rollover, or lost it, keeps its usage."""
    counter = kind()
    if isinstance(kept, RollingWindow) and isinstance(counter, FixedWindow):
        counter.used, counter.ends, counter.last = kept.used, kept.ends, kept.last
        counter.rolled = (kept.number, kept.before, kept.had, kept.spent)
    elif isinstance(kept, FixedWindow) and isinstance(counter, RollingWindow):
        counter.used, counter.ends, counter.last = kept.used, kept.ends, kept.last
        if kept.rolled:
            counter.number, counter.before, counter.had, counter.spent = kept.rolled
    return counter


def _more(counter: Counter, spec: Spec, remaining: int) -> int:
    """Return in how many microseconds more than *remaining* permits are left, 0 if nothing is charged, or NEVER."""
    if spec.capacity == 0:
        return NEVER
    if remaining >= spec.capacity or (spec.letter == "c" and remaining >= MAX_SLOTS_PER_REQUEST):
        return 0
    return counter.wait(max(remaining, 0) + 1)


def _deny_slots(rows: Sequence[tuple[Counter, Spec, int]], waits: list[int]) -> None:
    """Deny limits of slots, from that on with which a request would take more slots than one call may."""
    if any(wait != 0 and not spec.shadow for wait, (_, spec, _) in zip(waits, rows, strict=True)):
        return
    taken = 0
    for i, (_, spec, cost) in enumerate(rows):
        if spec.letter == "c" and waits[i] == 0:
            if taken + cost > MAX_SLOTS_PER_REQUEST:
                waits[i] = HOPELESS
            else:
                taken += cost


def _wait_for(counter: Counter, spec: Spec, cost: int) -> int:
    if cost == 0:
        return 0
    if cost > spec.capacity or (spec.letter == "c" and cost > MAX_SLOTS_PER_REQUEST):
        return HOPELESS
    return 0 if cost <= counter.room() else counter.wait(cost)
