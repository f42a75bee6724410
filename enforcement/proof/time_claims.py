"""Claims about how long decisions took, and who made them during an outage."""

from __future__ import annotations

from collections import Counter

from enforcement.proof.evidence import Claim, Evidence


def in_time(evidence: Evidence) -> Claim:
    """Return the claim that at most ``terms.late`` decisions took longer than their time budget and the margin."""
    bound = evidence.timeout_ms + evidence.terms.margin_ms
    slowest = max((record.took_ms for record in evidence.records), default=0.0)
    late = sum(record.took_ms > bound for record in evidence.records)
    some = f", but for {evidence.terms.late}" if evidence.terms.late else ""
    found = f"{slowest:.1f} ms at most; {late} of {len(evidence.records)} later"
    return Claim("a decision takes", f"<= {bound:g} ms{some}", found, late <= evidence.terms.late)


def in_vain(evidence: Evidence) -> Claim:
    """
    Return the claim that few decisions of an outage waited for the store in vain.

    Each of them waited for its whole time budget. After that the circuit breaker has to be open.
    """
    waited: Counter[tuple[str, int]] = Counter()
    for ledger, outages in zip(evidence.ledgers, evidence.outages, strict=True):
        for record, number in zip(ledger.records, outages, strict=True):
            if number and record.cause:
                waited[ledger.instance, number] += 1
    most, bound = max(waited.values(), default=0), evidence.terms.vain
    found = f"{most} (worst of {len(waited)} outages of a process)"
    return Claim("decisions of one outage that asked in vain", f"<= {bound}", found, most <= bound)


def while_away(evidence: Evidence) -> Claim:
    """Return the claim that a process decides fast while it does not call the store."""
    what, bound = "a decision while the store is not asked", evidence.terms.alone_ms
    spans = sorted(record.took_ms for record in evidence.records if record.degraded and not record.cause)
    if not spans:
        return Claim(what, f"p99 <= {bound:g} ms", "none was made")
    p99 = spans[max(0, -(-len(spans) * 99 // 100) - 1)]
    found = f"p50 {spans[len(spans) // 2]:.3f} ms, p99 {p99:.3f} ms of {len(spans)}"
    return Claim(what, f"p99 <= {bound:g} ms", found, p99 <= bound)


def back_in_time(evidence: Evidence) -> Claim:
    """Return the claim that each process used the store again in time after an outage, and went on doing so."""
    what, back = "from the store's return to its use", evidence.terms.back_at_us
    if not back:
        return Claim(what, "any", f"{_longest_outage(evidence):.1f} s was the longest outage of a process")
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


def _longest_outage(evidence: Evidence) -> float:
    """Return the length of the longest outage of a process, in seconds."""
    longest = 0
    for ledger, outages in zip(evidence.ledgers, evidence.outages, strict=True):
        spans: dict[int, tuple[int, int]] = {}
        for record, number in zip(ledger.records, outages, strict=True):
            if number:
                spans[number] = (spans.get(number, (record.started_at_us, 0))[0], record.ended_at_us)
        longest = max(longest, *(end - start for start, end in spans.values()), 0)
    return longest / 1_000_000
