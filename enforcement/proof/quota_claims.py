"""Claims about how many permits were admitted and charged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Final

from enforcement.model.limits import Limit
from enforcement.proof.evidence import Claim, CountedDecision, CounterReading, Evidence
from enforcement.proof.history import Record
from enforcement.proof.model import felt, peak, window_of
from enforcement.store.errors import TAKEN_FOR_EXECUTED

JOURNAL_GRAIN_SECONDS: Final = 0.1
"""A process charges what it admitted alone to a log or a bucket up to this much later than it admitted it."""

_HEALTHY, _CUT, _AWAY = "with the store", "that an outage cuts", "without the store"


def admitted(
    evidence: Evidence, name: str, limit: Limit, counters: Sequence[Sequence[CountedDecision]]
) -> Iterator[Claim]:
    """
    Yield a claim on the worst window of each kind, and after failovers one on all that was admitted beyond the bounds.

    With L for the quota and E for the instances, a window that the store decided admits L. A window without the store
    admits L + E for each outage. A window that an outage cuts admits the sum of both.
    """
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    over = 0
    for decisions in counters:
        for window in _windows(limit, decisions):
            kind, bound = _bound(evidence, limit, window)
            most = _peak(limit, window)
            if bound is not None:
                found[kind].append((most, bound))
                over += max(0, most - bound)
    spared = evidence.terms.failovers * limit.capacity
    for kind, figures in found.items():
        most, bound = max(figures, key=lambda figure: figure[0] - figure[1])
        worst = f"{most} (worst of {len(figures)})"
        yield Claim(f"{name}: admitted in a window {kind}", f"<= {bound}", worst, most <= bound or 0 < over <= spared)
    if evidence.terms.failovers:
        yield Claim(f"{name}: admitted beyond that, in all", f"<= {spared}", str(over), over <= spared)


def admitted_alone(
    evidence: Evidence, name: str, limit: Limit, counters: Sequence[Sequence[CountedDecision]]
) -> Iterator[Claim]:
    """Yield a claim on the most that one process admitted in a window of one outage, if there was such a window."""
    share = {"deny": 0, "local": min(limit.capacity, max(1, limit.capacity // evidence.fleet))}
    bound = share.get(limit.on_store_failure)
    part_of_rate = Fraction(bound or 0, limit.capacity or 1)
    most, cases = 0, 0
    for decisions in counters:
        grouped: dict[tuple[str, int], list[CountedDecision]] = defaultdict(list)
        for decision in decisions:
            if decision.outage:
                grouped[decision.record.instance, decision.outage].append(decision)
        for alone in grouped.values():
            for window in _windows(limit, alone):
                most, cases = max(most, _peak(limit, window, part_of_rate)), cases + 1
    if cases:
        held = None if bound is None else most <= bound
        worst = f"{most} (worst of {cases})"
        yield Claim(f"{name}: admitted by one process alone", "any" if bound is None else f"<= {bound}", worst, held)


def saturated(name: str, limit: Limit, counters: Sequence[Sequence[CountedDecision]]) -> Iterator[Claim]:
    """
    Yield a claim that the store denied only what did not fit, unless the limit is leased, a bucket or a sliding window.
    """
    if limit.algorithm not in ("fixed_window", "sliding_log") or limit.consistency == "leased":
        return
    # The permits that were carried into a window are not known here, but its quota must have been used.
    full, left, cases = limit.quota if limit.rollover else limit.capacity, 0, 0
    for decisions in counters:
        for window in _windows(limit, decisions):
            denied = [d for d in window if limit.name in d.record.denied_by and d.record.source == "store"]
            if not denied or any(decision.outage for decision in window):
                continue
            smallest = min(decision.permits for decision in denied)
            left, cases = max(left, full - _peak(limit, window) - (smallest - 1)), cases + 1
    worst = f"{left} (worst of {cases} windows)"
    yield Claim(f"{name}: permits left unused where requests were denied", "0", worst, left <= 0 and cases > 0)


def charged(evidence: Evidence, readings: Iterable[CounterReading]) -> Iterator[Claim]:
    """Yield claims that the store charged all that was admitted, and nothing that was not requested."""
    for reading in readings:
        counter, limit = reading.counter, reading.counter.limit
        decisions = evidence.decisions[counter.key]
        sure = [d.charge for d in decisions if d.record.allowed and not _taken_for_executed(d.record)]
        least = felt(limit, sure, reading.now_us)
        lost = evidence.terms.killed * max(decision.permits for decision in decisions)
        most = least + _ambiguous(limit, decisions, reading.now_us) + lost
        if limit.consistency == "leased" or evidence.terms.failovers:
            held = None if limit.consistency == "leased" else reading.used <= most
            bound = f"<= {most}"
        else:
            held, bound = least <= reading.used <= most, f"= {least}" if least == most else f"{least} to {most}"
        yield Claim(f"{counter.name}: charged in the store ({counter.key})", bound, str(reading.used), held)


def _windows(limit: Limit, decisions: Iterable[CountedDecision]) -> list[list[CountedDecision]]:
    windows: dict[tuple[int, int], list[CountedDecision]] = defaultdict(list)
    for decision in decisions:
        windows[window_of(limit, decision.record.decided_at_us)].append(decision)
    return list(windows.values())


def _peak(limit: Limit, window: Iterable[CountedDecision], part_of_rate: Fraction = Fraction(1)) -> int:
    return peak(limit, [decision.charge for decision in window if decision.record.allowed], part_of_rate)


def _bound(evidence: Evidence, limit: Limit, window: Sequence[CountedDecision]) -> tuple[str, int | None]:
    """Return in words how an outage touched a window, and the most permits it may admit, or None for any number."""
    alone = [decision for decision in window if decision.outage]
    # The store keeps back a part of a leased bucket, since a permit may be handed out after it was charged.
    full = limit.capacity
    if limit.leasable and limit.algorithm == "token_bucket":
        full = limit.quota if limit.burst is None else limit.burst
    if not alone:
        return _HEALTHY, full
    kind, with_store = (_CUT, full) if len(alone) < len(window) else (_AWAY, 0)
    if limit.on_store_failure == "allow":
        return kind, None
    if limit.on_store_failure == "deny":
        return kind, with_store
    outages: dict[str, set[int]] = defaultdict(set)
    for decision in alone:
        outages[decision.record.instance].add(decision.outage)
    return kind, with_store + max(map(len, outages.values())) * (limit.capacity + evidence.fleet)


def _taken_for_executed(record: Record) -> bool:
    """Return whether the process assumed that the store had charged a request whose call got no reply."""
    return record.ambiguous and record.cause in TAKEN_FOR_EXECUTED


def _ambiguous(limit: Limit, decisions: Sequence[CountedDecision], now_us: int) -> int:
    """
    Return how many permits the store may have charged beyond those that are certain.

    The store may have charged a call without a reply once. If the connection was lost and the process allowed the
    request, the process charges it once more.
    """
    ambiguous = [decision.charge for decision in decisions if decision.record.ambiguous]
    grain = 0
    if limit.algorithm in ("sliding_log", "token_bucket") and any(decision.outage for decision in decisions):
        grain = 1 + int(limit.quota * JOURNAL_GRAIN_SECONDS / (limit.window_seconds or 1))
    return felt(limit, ambiguous, now_us) + grain
