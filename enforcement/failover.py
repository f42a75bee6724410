"""
Deciding while the store is away, and making it good when it is back.

The breaker keeps requests from waiting for a store that does not answer. The fallback decides in its place, by each
limit's own rule: ``local`` lets this process admit its share of the quota, ``allow`` and ``deny`` say it all. Whatever
is admitted meanwhile is written into the journal, and charged to the windows it belonged to when the store returns.
"""

from __future__ import annotations

import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from enforcement.algorithms import NEVER, Charge, Concurrency, Reference, Spec
from enforcement.doubts import Doubts
from enforcement.logs import Seldom
from enforcement.plans import Bound, Costs, Plan, with_share
from enforcement.protocol import Correction, StoreTrouble, reason_of

logger = logging.getLogger("sluicegate.failover")

FAILURES_TO_OPEN: Final = 3
"""Calls in a row that must fail before the breaker opens; each of them took up to the time budget."""
MAX_COUNTERS: Final = 50_000
JOURNAL_GRAIN_US: Final = 100_000
"""Instants of the journal are rounded up to this, so that a busy bucket is one entry and not thousands."""


# Not the module's own numbers: an application may have seeded them, and a fork would share any other's.
chance: Final = random.SystemRandom()


class Breaker:
    """
    Opens after failures in a row; only a probe in the background closes it.

    Attributes:
        open: Whether the store is taken to be away; read by every decision.
        cause: Why, in a word, as it was told last.
        opened_at: Monotonic seconds; 0 while closed.
        failures: Calls in a row that failed.
        openings: How often it opened.
    """

    def __init__(self, on_open: Callable[[str], None] = lambda cause: None, name: str = "The store") -> None:
        self.open = False
        self.cause = ""
        self._name = name
        self.opened_at = 0.0
        self.failures = 0
        self.openings = 0
        self._say = Seldom(logger)
        self._on_open = on_open
        self._lock = threading.Lock()

    def failed(self, cause: str) -> None:
        """Count a failure of the store."""
        with self._lock:
            self.failures += 1
            if self.open or self.failures < FAILURES_TO_OPEN:
                return
            self.open, self.opened_at = True, monotonic()
            self.openings += 1
            self.cause = _word(cause)
        text = "%s is away (%s); each limit is decided by its own rule until it is back."
        self._say.warning(_word(cause), text, self._name, cause)
        self._on_open(cause)

    def trip(self, cause: str) -> None:
        """
        Open at once: someone who knows says that the store is away.

        Args:
            cause: A word, and more after a colon. While it is open, another word is worth a line of its own.
        """
        if self.open:
            self._still(cause)
            return
        self.failures = FAILURES_TO_OPEN
        self.failed(cause)

    def _still(self, cause: str) -> None:
        if _word(cause) != self.cause:
            self.cause = _word(cause)
            self._say.warning(_word(cause), "%s is still away, for another cause now (%s).", self._name, cause)

    def succeeded(self) -> None:
        """Forget failures; called by a decision that the store made after one that it did not."""
        self.failures = 0

    def close(self) -> None:
        """Take the store for present again."""
        with self._lock:
            was_open, since = self.open, self.opened_at
            self.open, self.opened_at, self.failures = False, 0.0, 0
        if was_open:
            self._say.warning("back", "%s is back after %.1f s and decides again.", self._name, monotonic() - since)


def jittered(longest: float, least: float = 0.5) -> float:
    """Return a random span of *least* to 1 times *longest*: who lost the store in one moment does not return in one."""
    return longest * chance.uniform(least, 1.0)


def _word(cause: str) -> str:
    return cause.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be charged to one counter: permits, and the mark of their window."""

    key: str
    bound: Bound
    mark: int
    permits: int


@dataclass(frozen=True, slots=True)
class Debt:
    """
    Entries that are charged in one call.

    Attributes:
        ident: Makes a second sending harmless where *once* says so; slots are taken and freed under it, which is
            harmless by itself.
    """

    ident: str
    entries: tuple[Entry, ...]
    once: bool = True

    @property
    def hands_over(self) -> bool:
        """Whether it tells the store of slots that this process gave, and that are held still."""
        return self.entries[0].bound.letter == "c" and self.entries[0].permits > 0

    def apart(self) -> list[Debt]:
        """Return a debt for each entry; nothing of this one may have been charged."""
        return [replace(self, ident=self._of_part(i), entries=(entry,)) for i, entry in enumerate(self.entries)]

    def _of_part(self, number: int) -> str:
        # Each is remembered by itself, while slots are known by the id that they were taken under.
        return f"{self.ident}.{number}" if self.once else self.ident

    def corrections(self, now_us: int) -> list[Correction]:
        """Return the settlement that pays it, in the store's terms of the present."""
        return [Correction(e.key, e.bound.spec(now_us), e.permits, e.mark) for e in self.entries]


Ready = Callable[[Entry], bool]
"""Tells of an entry whether its counter can be paid to now."""


class Journal:
    """Permits admitted without the store, by counter and window; bounded, and counting what it had to drop."""

    def __init__(self, max_entries: int = MAX_COUNTERS) -> None:
        self.dropped = 0
        self._max = max_entries
        self._entries: dict[tuple[str, int], Entry] = {}
        self._debts: list[Debt] = []
        self._owed = 0  # entries of all debts

    def __len__(self) -> int:
        return len(self._entries) + self._owed

    def add(self, bound: Bound, mark: int, permits: int) -> None:
        """Write down a charge; *mark* names its window as the store would have."""
        if bound.letter in "lb":
            mark = -(-mark // JOURNAL_GRAIN_US) * JOURNAL_GRAIN_US
        known = self._entries.get((bound.key, mark))
        if known is None and len(self) >= self._max:
            self.dropped += abs(permits)
            return
        self._entries[bound.key, mark] = Entry(bound.key, bound, mark, permits + (known.permits if known else 0))

    def debts(self, ready: Ready = lambda entry: True, size: int = 100) -> list[Debt]:
        """
        Return what is owed in calls of one hash tag each; it is owed until :meth:`paid`.

        What cannot be paid now stays written down by counter and window: however long that takes, it grows no further.
        Durable counters are paid apart, for the store may wait for them alone.
        """
        groups: dict[tuple[str, bool], list[Entry]] = {}
        for entry in self._entries.values():
            groups.setdefault((entry.bound.tag, entry.bound.durable), []).append(entry)
        for entries in groups.values():
            if not ready(entries[0]):
                continue
            for entry in entries:
                del self._entries[entry.key, entry.mark]
            # One counter may owe for several windows: each in its own call, the oldest first.
            entries.sort(key=lambda entry: entry.mark)
            self._keep(Debt(uuid.uuid4().hex, chunk) for chunk in _distinct_chunks(entries, size))
        return [debt for debt in self._debts if all(map(ready, debt.entries))]

    def owe(self, debt: Debt) -> None:
        """Take over a settlement that may or may not have reached the store."""
        if len(self) < self._max:
            self._keep((debt,))
        else:
            self.dropped += _permits(debt)

    def paid(self, debt: Debt) -> None:
        """Strike out a debt."""
        self._debts.remove(debt)
        self._owed -= len(debt.entries)

    def refused(self, debt: Debt) -> None:
        """Owe the entries of a debt one by one, for one of them spoils the call; one that stands alone is given up."""
        self.paid(debt)
        if len(debt.entries) > 1:
            self._keep(debt.apart())
        else:
            self.dropped += _permits(debt)

    def _keep(self, debts: Iterable[Debt]) -> None:
        for debt in debts:
            self._debts.append(debt)
            self._owed += len(debt.entries)


def _permits(debt: Debt) -> int:
    return sum(abs(entry.permits) for entry in debt.entries)


def _distinct_chunks(entries: Sequence[Entry], size: int) -> list[tuple[Entry, ...]]:
    """Cut entries into calls in which no counter stands twice: a call reads all counters before it writes one."""
    chunks: list[list[Entry]] = []
    placed: dict[str, int] = {}
    for entry in entries:
        at = placed.get(entry.key, 0)
        while at < len(chunks) and len(chunks[at]) >= size:
            at += 1
        while at >= len(chunks):
            chunks.append([])
        chunks[at].append(entry)
        placed[entry.key] = at + 1
    return [tuple(chunk) for chunk in chunks if chunk]


class Fallback:
    """
    Decides in this process while the store is away.

    ``local`` limits run the reference algorithms with this process' share: the quota divided by the instances alive
    (the most seen in ten minutes), at least 1, and no more than the same part of what was last known to remain. Of the
    slots of a ``concurrency`` limit they count those that this process holds; the others' are in the others' shares.

    Args:
        held: Returns the slots of a counter that open reservations of this process hold: how many under each id.
    """

    def __init__(
        self, max_counters: int = MAX_COUNTERS, held: Callable[[str], Mapping[str, int]] = lambda key: {}
    ) -> None:
        self._held = held
        self._max_counters = max_counters
        self._begin()

    def _begin(self) -> None:
        self.journal = Journal(self._max_counters)
        self.doubts = Doubts(lambda entry: self.journal.add(entry.bound, entry.mark, entry.permits))
        self._local = Reference(self._max_counters)
        self._told: dict[str, int] = {}  # by key: when the store said what a counter was begun from
        self._slots: dict[tuple[str, str], Entry] = {}  # by id and key: given here, and not known to the store
        self._values: dict[str, set[str]] = {}
        self._places = 0
        self._lock = threading.Lock()

    def decide(
        self,
        plan: Plan,
        costs: Costs,
        now_us: int,
        fleet: int,
        *,
        charge: bool = True,
        ident: str = "",
        trouble: StoreTrouble | None = None,
    ) -> tuple[list[int], str]:
        """
        Return a reply in the store's form, with marks if *ident* is given, and the reason.

        Args:
            now_us: The best idea of the store's time, microseconds.
            fleet: Instances that share the quotas, at least 1.
            trouble: How the store was asked in vain: it may charge the request by itself. None: it was not asked.
        """
        bounds, specs = plan.bounds, plan.specs(now_us)
        with self._lock:
            charges = [
                (bound.key, self._share(plan, i, spec, fleet, now_us), bound.cost_of(costs))
                for i, (bound, spec) in enumerate(zip(bounds, specs, strict=True))
            ]
            refusing = [i for i, b in enumerate(bounds) if _refuses(b, charges[i][2])]
            charge = charge and not refusing
            reply = self._local.decide(now_us, charges, charge=charge, ident=ident or "local")
            self._apply_rules(plan, reply, refusing)
            if charge and reply[0] == 1:
                self._write_down(plan, charges, reply, ident, trouble)
        reason = "ok" if reply[0] == 1 else "degraded_denied" if refusing else reason_of(plan, reply, width=5)
        return (reply if ident else without_marks(reply)), reason

    def amend(self, bound: Bound, delta: int, mark: int, now_us: int) -> None:
        """Correct a charge while the store is away: here at once, and there when it returns."""
        with self._lock:
            self._local.amend(now_us, bound.key, bound.spec(now_us), delta, mark)
            self.journal.add(bound, mark, delta)

    def owe(self, ident: str, rows: Iterable[tuple[Bound, int, int]], *, once: bool) -> None:
        """Take over a settlement of this id whose sending failed: for each counter its bound, mark and permits."""
        with self._lock:
            self.journal.owe(Debt(ident, tuple(Entry(b.key, b, mark, permits) for b, mark, permits in rows), once))

    def beyond(self, plan: Plan) -> list[int]:
        """Tell of each newcomer of a plan whether it finds no place (1) among those met while the store is away."""
        with self._lock:
            return [self._enrol(plan.bounds[i]) for i in plan.newcomers]

    def divert(self, debt: Debt, beyond: Sequence[int]) -> None:
        """
        Owe to overflow counters what the store left out of a debt; *beyond* has a number for each newcomer in it.

        Slots are not owed there: whoever frees them does so where they were taken.
        """
        newcomers = [entry for entry in debt.entries if entry.bound.census is not None]
        with self._lock:
            for entry, diverts in zip(newcomers, beyond, strict=True):
                if diverts and entry.bound.letter != "c":
                    self.journal.add(entry.bound.overflowing(), entry.mark, entry.permits)

    def forget(self, ready: Callable[[str], bool] = lambda key: True) -> None:
        """Drop the local counters that the store counts again. The journal stays until it is paid."""
        with self._lock:
            self._local.forget([key for key in self._local.counters if ready(key)])
            self._told = {key: said_at_us for key, said_at_us in self._told.items() if not ready(key)}
            if not self._local.counters:
                self._values.clear()
                self._places = 0

    def owes(self) -> bool:
        """Tell whether anything is to be charged to the store, or handed over to it."""
        return bool(self.journal) or bool(self.doubts) or bool(self._slots)

    def after_fork(self) -> None:
        """Owe nothing in a child process: what was admitted before is its parent's to pay."""
        self._begin()

    def debts(self, ready: Ready = lambda entry: True) -> list[Debt]:
        """See :meth:`Journal.debts`. Slots that were given here and are held still come with them."""
        with self._lock:
            self.doubts.resolve(ready)
            return self.journal.debts(ready) + self._slot_debts(ready)

    def paid(self, debt: Debt) -> None:
        """Strike out a debt; see :meth:`Journal.paid`."""
        with self._lock:
            if debt.hands_over:
                self._handed_over(debt)
            else:
                self.journal.paid(debt)

    def refused(self, debt: Debt) -> None:
        """Deal with a debt that the store could not read; see :meth:`Journal.refused`."""
        with self._lock:
            if debt.hands_over:
                self._handed_over(debt)
            else:
                self.journal.refused(debt)

    # Slots, which are held for as long as a request takes, and may outlast the outage.

    def holds(self, ident: str, key: str) -> bool:
        """Tell whether slots of this id were given here and the store does not know of them."""
        return (ident, key) in self._slots

    def leave(self, ident: str, bound: Bound, count: int, now_us: int) -> bool:
        """Free slots here; tell whether that is all, for the store was not told of them."""
        with self._lock:
            if bound.key in self._local.counters:
                self._local.amend(now_us, bound.key, bound.spec(now_us), -count, 0, ident)
            return self._slots.pop((ident, bound.key), None) is not None

    def renew(self, ident: str, bound: Bound, count: int, now_us: int) -> None:
        """Prolong slots that were given here."""
        with self._lock:
            counter = self._local.counters.get(bound.key)
            if isinstance(counter, Concurrency):
                counter.renew(ident, count, now_us, bound.spec(now_us).a)

    def _slot_debts(self, ready: Ready) -> list[Debt]:
        return [Debt(ident, (entry,), once=False) for (ident, _), entry in self._slots.items() if ready(entry)]

    def _handed_over(self, debt: Debt) -> None:
        for entry in debt.entries:
            # Left while the call was under way: the store was told to free them too early, or not at all.
            if self._slots.pop((debt.ident, entry.key), None) is None:
                self.journal.owe(replace(debt, entries=(replace(entry, permits=-entry.permits),)))

    def _enrol(self, bound: Bound) -> int:
        census = bound.census
        assert census is not None
        values = self._values.setdefault(census.key, set())
        if bound.value in values:
            return 0
        if len(values) >= census.cap or self._places >= self._local.max_counters:
            return 1
        values.add(bound.value)
        self._places += 1
        return 0

    def _share(self, plan: Plan, index: int, spec: Spec, fleet: int, now_us: int) -> Spec:
        """Return the spec that this process may admit by, its counter begun from what was last known to be used."""
        bound = plan.bounds[index]
        if bound.limit.on_store_failure == "allow":
            return replace(spec, shadow=True)
        share = min(spec.capacity, max(1, spec.capacity // fleet))
        local = with_share(spec, share)
        if not self._is_news(bound.key, plan.last[1] if plan.last else 0):
            return local
        if bound.letter == "c":  # what was left is old news: slots are freed by the moment
            for ident, count in self._held(bound.key).items():
                self._local.amend(now_us, bound.key, spec, count, 0, ident)
        elif plan.last:
            left = max(0, plan.last[2 + 4 * index]) // fleet
            if left < share:
                self._local.decide(plan.last[1], [(bound.key, local, share - left)], ident="known")
        return local

    def _is_news(self, key: str, said_at_us: int) -> bool:
        """
        Tell whether a counter is to begin from what the store said at an instant, and forget the one there was.

        One that was charged here since stays: however long the store decides nothing, it is a single share.
        """
        counter = self._local.counters.get(key)
        if counter is not None and (said_at_us <= self._told.get(key, 0) or said_at_us <= counter.now):
            return False
        self._local.forget([key])
        if len(self._told) >= MAX_COUNTERS:
            del self._told[next(iter(self._told))]
        self._told[key] = said_at_us
        return True

    @staticmethod
    def _apply_rules(plan: Plan, reply: list[int], refusing: Sequence[int]) -> None:
        """Let ``allow`` limits say yes and ``deny`` limits say no, whatever the local counters say."""
        for i, bound in enumerate(plan.bounds):
            if bound.limit.on_store_failure == "allow":
                reply[4 + 5 * i] = 0
        for i in refusing:
            reply[0], reply[4 + 5 * i] = 0, NEVER

    def _write_down(
        self, plan: Plan, charges: Sequence[Charge], reply: Sequence[int], ident: str, trouble: StoreTrouble | None
    ) -> None:
        entries = []
        for i, bound in enumerate(plan.bounds):
            cost, wait, mark = charges[i][2], reply[4 + 5 * i], reply[6 + 5 * i]
            if not cost or wait != 0:
                continue
            entry = Entry(bound.key, bound, mark, cost)
            if bound.letter != "c":
                entries.append(entry)
            elif ident and len(self._slots) < MAX_COUNTERS:
                self._slots[ident, bound.key] = entry
        if trouble is None or not trouble.charges:
            for entry in entries:
                self.journal.add(entry.bound, entry.mark, entry.permits)
        elif trouble.late is not None:
            self.doubts.add(trouble.late, entries)


def _refuses(bound: Bound, cost: int) -> bool:
    return cost > 0 and bound.limit.on_store_failure == "deny" and not bound.limit.shadow


def without_marks(reply: Sequence[int]) -> list[int]:
    """Return a reply of four numbers a limit, as a call without an id has it."""
    return [value for i, value in enumerate(reply) if i < 2 or (i - 2) % 5 != 4]
