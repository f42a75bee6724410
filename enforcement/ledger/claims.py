"""
Every claim with a number in it, decided by what the ledgers say; and by what the store counted, if that was read.

Bounds are those of a fleet that shares one store: a limit's quota L while the store decides; L + E while E instances
decide alone; both together in a window that an outage cuts.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Final

from enforcement.ledger.records import Counter, Ledger, Record
from enforcement.ledger.sums import Charge, felt, peak, window_of
from enforcement.model.limits import Limit
from enforcement.plan.commands import TAKEN_FOR_EXECUTED

JOURNAL_GRAIN_SECONDS: Final = 0.1
"""What a process admitted alone is charged to a log or a bucket up to this much later than it was."""


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What is claimed.

    Args:
        fleet: Instances that share the quotas; 0: as many as there are ledgers.
        timeout_ms: Time budget of a decision; 0: the one that the ledgers name.
        margin_ms: How much longer one may take.
        late: How many may take longer than that.
        vain: How often one process may ask a store in vain before it stops asking.
        alone_ms: The 99th percentile of decisions while the store is not asked.
        saturated: Whether every limit that denied must have been used to the last permit.
        back_at_us: When the store answered again, by this machine's clock; 0: not judged.
        return_seconds: How soon after that each instance must be decided by the store, for good.
        killed: Processes of the load that were killed: each may have had one request under way.
        failovers: How often the store may have lost what it had acknowledged: each may cost one quota.
        limits: Judge by these, whatever the ledgers declare; by name.
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
    """One sentence with its bound, what was found, and whether it holds; None: a figure that nothing was said of."""

    what: str
    bound: str
    found: str
    held: bool | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store has charged to a counter at an instant of its own clock."""

    counter: Counter
    now_us: int
    used: int


@dataclass(slots=True)
class _Part:
    """A charge with the decision that made it; ``outage`` numbers the outages of its process, 0 with the store."""

    record: Record
    permits: int
    outage: int

    @property
    def charge(self) -> Charge:
        return self.record.decided_at_us, self.permits


class Evidence:
    """All ledgers of one load, sorted by what they are about."""

    def __init__(self, ledgers: Sequence[Ledger], terms: Terms) -> None:
        self.ledgers, self.terms = ledgers, terms
        self.fleet = terms.fleet or len(ledgers)
        self.timeout_ms = terms.timeout_ms or max(ledger.timeout_ms for ledger in ledgers)
        self.records = [record for ledger in ledgers for record in ledger.records]
        self.outages = [_outages(ledger.records) for ledger in ledgers]
        self.counters: dict[str, Counter] = {}
        self.parts: dict[str, list[_Part]] = defaultdict(list)
        numbers = [number for outages in self.outages for number in outages]
        for record, number in zip(self.records, numbers, strict=True):
            for counter, cost in zip(record.counters, record.costs, strict=True):
                self.parts[counter.key].append(_Part(record, cost, number))
                self._know(counter)
        for parts in self.parts.values():
            parts.sort(key=lambda part: part.record.decided_at_us)

    def _know(self, counter: Counter) -> None:
        """A limit that was edited under the load is judged by the greatest it was."""
        limit = self.terms.limits.get(counter.name)
        if limit is not None:
            counter = replace(counter, limit=limit)
        known = self.counters.get(counter.key)
        if known is None or counter.limit.capacity > known.limit.capacity:
            self.counters[counter.key] = counter

    def judged(self) -> Iterator[tuple[str, Limit, list[list[_Part]]]]:
        """Yield each limit that can be judged by counting, with the decisions on each of its counters."""
        grouped: dict[str, tuple[Limit, list[list[_Part]]]] = {}
        for key, counter in self.counters.items():
            if can_be_judged(counter.limit):
                grouped.setdefault(counter.name, (counter.limit, []))[1].append(self.parts[key])
        for name, (limit, counters) in grouped.items():
            yield name, limit, counters


def can_be_judged(limit: Limit) -> bool:
    """Tell whether a ledger proves anything of a limit: a shadow denies nobody, and slots are held, not counted."""
    return not limit.shadow and limit.algorithm != "concurrency"


def _outages(records: Iterable[Record]) -> list[int]:
    """Return for each decision of a process the number of the outage that it was made in; 0: in none."""
    numbers, count, out = [], 0, False
    for record in records:
        count += record.degraded and not out
        out = record.degraded
        numbers.append(count if out else 0)
    return numbers


def judge(evidence: Evidence, readings: Sequence[Reading] = ()) -> list[Claim]:
    """Return every claim, decided."""
    claims = [_ids(evidence)]
    for name, limit, counters in evidence.judged():
        claims += _quota(evidence, name, limit, counters)
        claims += _alone(evidence, name, limit, counters)
        if evidence.terms.saturated:
            claims += _saturation(name, limit, counters)
    claims += _charged(evidence, readings)
    claims += [_in_time(evidence), _in_vain(evidence), _while_away(evidence), _return(evidence), _revisions(evidence)]
    return [*claims, *_figures(evidence)]


def _ids(evidence: Evidence) -> Claim:
    """A decision that stands twice would be counted twice by every other claim."""
    twice = len(evidence.records) - len({record.id for record in evidence.records})
    return Claim("request ids that stand twice", "0", f"{twice} of {len(evidence.records)}", twice == 0)


# How much was admitted.

_HEALTHY, _CUT, _AWAY = "with the store", "that an outage cuts", "without the store"


def _quota(evidence: Evidence, name: str, limit: Limit, counters: list[list[_Part]]) -> Iterator[Claim]:
    """In every window: L; L + E for each outage if the store decided nothing in it; both if an outage cuts it."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    over = 0
    for parts in counters:
        for window in _windows(limit, parts):
            kind, bound = _bound(evidence, limit, window)
            most = peak(limit, [part.charge for part in window if part.record.allowed])
            if bound is not None:
                found[kind].append((most, bound))
                over += max(0, most - bound)
    spared = evidence.terms.failovers * limit.capacity
    for kind, figures in found.items():
        most, bound = max(figures, key=lambda figure: figure[0] - figure[1])
        text = f"{most} (worst of {len(figures)})"
        yield Claim(f"{name}: admitted in a window {kind}", f"<= {bound}", text, most <= bound or 0 < over <= spared)
    if evidence.terms.failovers:
        yield Claim(f"{name}: admitted beyond that, in all", f"<= {spared}", str(over), over <= spared)


def _windows(limit: Limit, parts: Iterable[_Part]) -> list[list[_Part]]:
    windows: dict[tuple[int, int], list[_Part]] = defaultdict(list)
    for part in parts:
        windows[window_of(limit, part.record.decided_at_us)].append(part)
    return list(windows.values())


def _bound(evidence: Evidence, limit: Limit, window: Sequence[_Part]) -> tuple[str, int | None]:
    alone = [part for part in window if part.outage]
    if not alone:
        return _HEALTHY, limit.capacity
    kind, with_store = (_CUT, limit.capacity) if len(alone) < len(window) else (_AWAY, 0)
    if limit.on_store_failure == "allow":
        return kind, None
    if limit.on_store_failure == "deny":
        return kind, with_store
    outages: dict[str, set[int]] = defaultdict(set)
    for part in alone:
        outages[part.record.instance].add(part.outage)
    return kind, with_store + max(map(len, outages.values())) * (limit.capacity + evidence.fleet)


def _alone(evidence: Evidence, name: str, limit: Limit, counters: list[list[_Part]]) -> Iterator[Claim]:
    """By one process, in one window of one outage: its share of the quota, and at least one permit."""
    share = {"deny": 0, "local": min(limit.capacity, max(1, limit.capacity // evidence.fleet))}
    bound = share.get(limit.on_store_failure)
    part_of_rate = Fraction(bound or 0, limit.capacity or 1)
    most, cases = 0, 0
    for parts in counters:
        grouped: dict[tuple[str, int], list[_Part]] = defaultdict(list)
        for part in parts:
            if part.outage:
                grouped[part.record.instance, part.outage].append(part)
        for alone in grouped.values():
            for window in _windows(limit, alone):
                charges = [part.charge for part in window if part.record.allowed]
                most, cases = max(most, peak(limit, charges, part_of_rate)), cases + 1
    if cases:
        held = None if bound is None else most <= bound
        text = f"{most} (worst of {cases})"
        yield Claim(f"{name}: admitted by one process alone", "any" if bound is None else f"<= {bound}", text, held)


def _saturation(name: str, limit: Limit, counters: list[list[_Part]]) -> Iterator[Claim]:
    """Where the store denied, no smaller request than the smallest that was denied would have fitted."""
    if limit.algorithm not in ("fixed_window", "sliding_log") or limit.consistency == "leased":
        return
    left, cases = 0, 0
    for parts in counters:
        for window in _windows(limit, parts):
            denied = [part for part in window if limit.name in part.record.denied_by and part.record.source == "store"]
            if not denied or any(part.outage for part in window):
                continue
            used = peak(limit, [part.charge for part in window if part.record.allowed])
            smallest = min(part.permits for part in denied)
            left, cases = max(left, limit.capacity - used - (smallest - 1)), cases + 1
    text = f"{left} (worst of {cases} windows)"
    yield Claim(f"{name}: permits left unused where requests were denied", "0", text, left <= 0 and cases > 0)


def _charged(evidence: Evidence, readings: Sequence[Reading]) -> Iterator[Claim]:
    """What the store counted: everything that was admitted, and nothing that nobody asked for."""
    for reading in readings:
        counter, limit = reading.counter, reading.counter.limit
        parts = evidence.parts[counter.key]
        sure = [part.charge for part in parts if part.record.allowed and not _taken_for_executed(part.record)]
        least = felt(limit, sure, reading.now_us)
        most = (
            least + _doubt(limit, parts, reading.now_us) + evidence.terms.killed * max(part.permits for part in parts)
        )
        if limit.consistency == "leased" or evidence.terms.failovers:
            held = None if limit.consistency == "leased" else reading.used <= most
            bound = f"<= {most}"
        else:
            held, bound = least <= reading.used <= most, f"= {least}" if least == most else f"{least} to {most}"
        yield Claim(f"{counter.name}: charged in the store ({counter.key})", bound, str(reading.used), held)


def _taken_for_executed(record: Record) -> bool:
    """Tell whether the process left it to the store to charge a request whose call got no answer."""
    return record.ambiguous and record.cause in TAKEN_FOR_EXECUTED


def _doubt(limit: Limit, parts: Sequence[_Part], now_us: int) -> int:
    """
    Calls without an answer may have been charged by the store: once, and if the connection was lost and the process let
    them pass, once more by that.
    """
    ambiguous = [part.charge for part in parts if part.record.ambiguous]
    grain = 0
    if limit.algorithm in ("sliding_log", "token_bucket") and any(part.outage for part in parts):
        grain = 1 + int(limit.quota * JOURNAL_GRAIN_SECONDS / (limit.window_seconds or 1))
    return felt(limit, ambiguous, now_us) + grain


# How fast, and by whom.


def _in_time(evidence: Evidence) -> Claim:
    bound = evidence.timeout_ms + evidence.terms.margin_ms
    slowest = max((record.took_ms for record in evidence.records), default=0.0)
    late = sum(record.took_ms > bound for record in evidence.records)
    some = f", but for {evidence.terms.late}" if evidence.terms.late else ""
    found = f"{slowest:.1f} ms at most; {late} of {len(evidence.records)} later"
    return Claim("a decision takes", f"<= {bound:g} ms{some}", found, late <= evidence.terms.late)


def _in_vain(evidence: Evidence) -> Claim:
    """Each such decision waited for the whole of its budget; then the breaker has to be open."""
    tally: Tally[tuple[str, int]] = Tally()
    for ledger, outages in zip(evidence.ledgers, evidence.outages, strict=True):
        for record, number in zip(ledger.records, outages, strict=True):
            if number and record.cause:
                tally[ledger.instance, number] += 1
    most = max(tally.values(), default=0)
    found = f"{most} (worst of {len(tally)} outages of a process)"
    return Claim(
        "decisions of one outage that asked in vain", f"<= {evidence.terms.vain}", found, most <= evidence.terms.vain
    )


def _while_away(evidence: Evidence) -> Claim:
    spans = sorted(record.took_ms for record in evidence.records if record.degraded and not record.cause)
    if not spans:
        return Claim(
            "a decision while the store is not asked", f"p99 <= {evidence.terms.alone_ms:g} ms", "none was made"
        )
    p99 = spans[max(0, -(-len(spans) * 99 // 100) - 1)]
    bound = evidence.terms.alone_ms
    found = f"p50 {spans[len(spans) // 2]:.3f} ms, p99 {p99:.3f} ms of {len(spans)}"
    return Claim("a decision while the store is not asked", f"p99 <= {bound:g} ms", found, p99 <= bound)


def _return(evidence: Evidence) -> Claim:
    """Each process must be decided by the store again in time, and go on being so."""
    what, back = "from the store's return to its use", evidence.terms.back_at_us
    if not back:
        return Claim(what, "any", f"{_longest(evidence):.1f} s was the longest outage of a process")
    waits, lost = [], 0
    for ledger in evidence.ledgers:
        after = [record for record in ledger.records if record.started_at_us >= back]
        if not any(record.degraded for record in ledger.records) or not after:
            continue
        last = max((record.started_at_us for record in after if record.degraded), default=back)
        waits.append((last - back) / 1_000_000)
        lost += after[-1].degraded
    if not waits:
        return Claim(what, "an outage", "no process was ever without the store", False)
    longest, bound = max(waits), evidence.terms.return_seconds
    found = f"{longest:.2f} s at most, {lost} of {len(waits)} processes never"
    return Claim(what, f"<= {bound:g} s", found, not lost and longest <= bound)


def _longest(evidence: Evidence) -> float:
    longest = 0
    for ledger, outages in zip(evidence.ledgers, evidence.outages, strict=True):
        spans: dict[int, tuple[int, int]] = {}
        for record, number in zip(ledger.records, outages, strict=True):
            if number:
                spans[number] = (spans.get(number, (record.started_at_us, 0))[0], record.ended_at_us)
        longest = max(longest, *(end - start for start, end in spans.values()), 0)
    return longest / 1_000_000


def _revisions(evidence: Evidence) -> Claim:
    back = sum(
        later.revision < earlier.revision for ledger in evidence.ledgers for earlier, later in pairwise(ledger.records)
    )
    newest = max((record.revision for record in evidence.records), default=0)
    return Claim("older revisions obeyed after newer ones", "0", f"{back} (newest: {newest})", back == 0)


def _figures(evidence: Evidence) -> Iterator[Claim]:
    total = len(evidence.records) or 1
    sources = Tally(record.source for record in evidence.records)
    yield Claim("decided by", "any", ", ".join(f"{name} {count}" for name, count in sources.most_common()) or "nobody")
    degraded = sources["fallback"]
    causes = Tally(record.cause for record in evidence.records if record.cause)
    why = ", ".join(f"{name} {count}" for name, count in causes.most_common())
    yield Claim("decided without the store", "any", f"{100 * degraded / total:.2f} %{f' ({why})' if why else ''}")
    changes = sum(a.degraded != b.degraded for ledger in evidence.ledgers for a, b in pairwise(ledger.records))
    yield Claim("changes between the store and the process", "any", f"{changes} in {len(evidence.ledgers)} processes")


__all__ = ["Claim", "Evidence", "Reading", "Terms", "judge"]
