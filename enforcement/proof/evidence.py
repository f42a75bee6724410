"""The claims of a proof, their bounds, and the ledgers grouped by counter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from enforcement.model.limits import Limit
from enforcement.proof.history import Ledger, LedgerCounter, Record
from enforcement.proof.model import Charge


@dataclass(frozen=True, slots=True)
class Terms:
    """
    The bounds of the claims.

    Args:
        fleet: Instances that share the quotas. 0: as many as there are ledgers.
        timeout_ms: Time budget of a decision. 0: the one in the ledgers.
        margin_ms: How much longer than the time budget a decision may take.
        late: How many decisions may take longer than that.
        vain: How many decisions of one outage may wait for the store before a process stops calling it.
        alone_ms: The 99th percentile of decisions while the store is not called.
        saturated: Whether every limit that denied must have been used to the last permit.
        back_at_us: When the store replied again, by the clock of this machine. 0: not checked.
        return_seconds: How soon after that each instance must be decided by the store, for good.
        killed: Processes of the load that were killed. Each may have had one request in flight.
        failovers: How often the store may have lost acknowledged counters. Each time may cost one quota.
        limits: By name; they replace the limits in the ledgers.
    """

    fleet: int = 0
    timeout_ms: float = 0.0
    margin_ms: float = 5.0
    late: int = 0
    vain: int = 5
    alone_ms: float = 1.0
    saturated: bool = False
    back_at_us: int = 0
    return_seconds: float = 5.0
    killed: int = 0
    failovers: int = 0
    limits: Mapping[str, Limit] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """
    One claim, checked.

    Attributes:
        held: None for a figure that has no bound.
    """

    what: str
    bound: str
    found: str
    held: bool | None = None


@dataclass(frozen=True, slots=True)
class CounterReading:
    """The charges of a counter in the store, at an instant of the store's clock."""

    counter: LedgerCounter
    now_us: int
    used: int


@dataclass(slots=True)
class CountedDecision:
    """
    A decision, and its cost for one counter.

    Attributes:
        permits: The cost.
        outage: Number of the outage of its process. 0: the store decided.
    """

    record: Record
    permits: int
    outage: int

    @property
    def charge(self) -> Charge:
        """The instant and the permits of the charge, as the model counts them."""
        return self.record.decided_at_us, self.permits


class Evidence:
    """All ledgers of one load, with the decisions grouped by counter and sorted by time."""

    def __init__(self, ledgers: Sequence[Ledger], terms: Terms) -> None:
        self.ledgers, self.terms = ledgers, terms
        self.fleet = terms.fleet or len(ledgers)
        self.timeout_ms = terms.timeout_ms or max(ledger.timeout_ms for ledger in ledgers)
        self.records = [record for ledger in ledgers for record in ledger.records]
        self.outages = [_outages(ledger.records) for ledger in ledgers]
        self.counters: dict[str, LedgerCounter] = {}
        self.decisions: dict[str, list[CountedDecision]] = defaultdict(list)
        numbers = [number for outages in self.outages for number in outages]
        for record, number in zip(self.records, numbers, strict=True):
            for counter, cost in zip(record.counters, record.costs, strict=True):
                self.decisions[counter.key].append(CountedDecision(record, cost, number))
                self._add(counter)
        for decisions in self.decisions.values():
            decisions.sort(key=lambda decision: decision.record.decided_at_us)

    def _add(self, counter: LedgerCounter) -> None:
        """Add a counter to this evidence. If its limit was edited during the load, the largest capacity counts."""
        limit = self.terms.limits.get(counter.name)
        if limit is not None:
            counter = replace(counter, limit=limit)
        known = self.counters.get(counter.key)
        if known is None or counter.limit.capacity > known.limit.capacity:
            self.counters[counter.key] = counter

    def by_limit(self) -> Iterator[tuple[str, Limit, list[list[CountedDecision]]]]:
        """
        Yield the name of each limit that counting can prove, the limit, and a list of decisions for each of its
        counters.
        """
        grouped: dict[str, tuple[Limit, list[list[CountedDecision]]]] = {}
        for key, counter in self.counters.items():
            if can_be_proved(counter.limit):
                grouped.setdefault(counter.name, (counter.limit, []))[1].append(self.decisions[key])
        for name, (limit, counters) in grouped.items():
            yield name, limit, counters


def can_be_proved(limit: Limit) -> bool:
    """Return whether counting can prove a limit. A shadow limit denies nobody, and slots are held, not counted."""
    return not limit.shadow and limit.algorithm != "concurrency"


def _outages(records: Iterable[Record]) -> list[int]:
    """Return for each decision of a process the number of its outage, or 0 if the store decided."""
    numbers, count, out = [], 0, False
    for record in records:
        count += record.degraded and not out
        out = record.degraded
        numbers.append(count if out else 0)
    return numbers
